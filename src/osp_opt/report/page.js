"use strict";
(() => {
  const scenes = [...document.querySelectorAll(".scene")];
  const controls = document.querySelector(".controls");
  if (!scenes.length || !controls) return;
  const [prompt, play, back, forward, scrub, shown, rate] =
    ["prompt", "play", "back", "forward", "scrub", "frame", "rate"].map(
      (id) => document.getElementById(id));
  let current = 0;
  let frame = 0;
  let playing = false;

  const scene = () => scenes[current];
  const fps = () => Number(scene().dataset.fps);
  const frames = () => Number(scene().dataset.frames);
  const videos = () => [...scene().querySelectorAll("video")];

  function show() {
    scrub.value = frame;
    shown.textContent = `${frame + 1} / ${frames()}`;
    scrub.setAttribute("aria-valuetext", `frame ${frame + 1} of ${frames()}`);
  }

  // The middle of the frame's time, so that rounding cannot show its neighbour.
  function seek(target) {
    frame = Math.max(0, Math.min(frames() - 1, target));
    for (const video of videos()) video.currentTime = (frame + 0.5) / fps();
    show();
  }

  function setPlaying(wanted) {
    playing = wanted && videos().length > 0;
    play.textContent = playing ? "Pause" : "Play";
    play.setAttribute("aria-pressed", String(playing));
    if (!playing) {
      for (const video of videos()) video.pause();
      return;
    }
    if (frame >= frames() - 1) seek(0);
    for (const video of videos()) {
      video.playbackRate = Number(rate.value);
      video.play().catch(() => setPlaying(false));
    }
    requestAnimationFrame(follow);
  }

  // The first video leads; the others are pulled back when they drift by a frame.
  function follow() {
    if (!playing) return;
    const [leader, ...others] = videos();
    if (leader.ended) {
      seek(0);
      for (const video of videos()) video.play().catch(() => setPlaying(false));
    } else {
      frame = Math.min(frames() - 1, Math.floor(leader.currentTime * fps()));
      for (const video of others) {
        const drift = Math.abs(video.currentTime - leader.currentTime);
        if (drift > 1 / fps()) video.currentTime = leader.currentTime;
        if (video.paused && !video.ended) video.play().catch(() => setPlaying(false));
      }
      show();
    }
    requestAnimationFrame(follow);
  }

  function choose(index) {
    setPlaying(false);
    current = (index + scenes.length) % scenes.length;
    scenes.forEach((item, i) => { item.hidden = i !== current; });
    prompt.value = String(current);
    scrub.max = frames() - 1;
    controls.querySelector(".player").hidden = videos().length === 0;
    seek(Math.min(frame, frames() - 1));
  }

  function step(by) {
    setPlaying(false);
    seek(frame + by);
  }

  play.addEventListener("click", () => setPlaying(!playing));
  back.addEventListener("click", () => step(-1));
  forward.addEventListener("click", () => step(1));
  scrub.addEventListener("input", () => { setPlaying(false); seek(Number(scrub.value)); });
  prompt.addEventListener("change", () => choose(Number(prompt.value)));
  rate.addEventListener("change", () => {
    for (const video of videos()) video.playbackRate = Number(rate.value);
  });
  document.addEventListener("keydown", (event) => {
    const busy = event.target.closest("input, select, button, summary, a, pre, .wide");
    if (busy || event.ctrlKey || event.metaKey || event.altKey) return;
    const actions = {
      " ": () => setPlaying(!playing),
      ArrowLeft: () => step(-1),
      ArrowRight: () => step(1),
      Home: () => step(-frames()),
      End: () => step(frames()),
      n: () => choose(current + 1),
      p: () => choose(current - 1),
    };
    const action = actions[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  for (const video of document.querySelectorAll(".scene video")) {
    video.controls = false;
    video.addEventListener("loadedmetadata", () => { if (!playing) seek(frame); });
  }
  controls.hidden = false;
  choose(0);
})();
