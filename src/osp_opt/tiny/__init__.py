"""The bundled model's world: captions of clips, and a checker that reads clips back."""
