"""Devices on a machine that has a CPU, precision policies, and memory figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import nn

from osp_opt.base.errors import DeviceError, OptionError
from osp_opt.model.release import load_vae
from osp_opt.system.device import ASCEND_PRECISION, Device, discover
from osp_opt.system.host import impossible_device, share_cores
from osp_opt.system.precision import AS_IS, PrecisionPolicy, apply_precision

DOUBLE = PrecisionPolicy(conv3d=torch.float64, group_norm=torch.float64)


def test_the_cpu_works_in_float32_on_gloo() -> None:
    device = Device.open("cpu", 3)  # every local rank has the one CPU
    assert (device.name, device.torch_device, device.backend) == (
        "cpu",
        torch.device("cpu"),
        "gloo",
    )
    assert device.dtype is torch.float32
    assert device.attention == "native"
    assert device.precision is AS_IS
    device.synchronize()
    device.empty_cache()
    device.reset_peak_memory()
    with device.exact_float32():
        assert torch.ones(2).sum() == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "tpu"}, "--device tpu: unknown; choose auto, npu, cuda, cpu"),
        ({"name": "cpu", "dtype": "int8"}, "--dtype int8: unknown"),
        ({"name": "cpu", "attention": "_native_npu"}, "--attention _native_npu: does not run on"),
        ({"name": "cpu", "attention": "nativ"}, "choose auto or one that begins with native"),
    ],
)
def test_what_does_not_exist_is_refused(options: dict[str, str], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        Device.open(**options)


def test_discovery_gives_every_kind_a_count_or_a_problem() -> None:
    found = {each.kind: each for each in discover()}
    assert list(found) == ["npu", "cuda", "cpu"]
    for each in found.values():
        assert (each.count == 0) == (each.problem is not None)
        if each.problem is not None:
            with pytest.raises(DeviceError) as caught:
                Device.open(each.kind)
            assert each.problem in str(caught.value)
    working = next(kind for kind, each in found.items() if each.problem is None)
    assert Device.open("auto").name == working


def test_memory_of_the_cpu_is_that_of_this_process() -> None:
    before = Device.open("cpu").memory()
    ballast = torch.ones(64 * 2**20, dtype=torch.uint8)
    after = Device.open("cpu").memory()
    assert before.allocated is not None
    assert after.allocated is not None
    assert after.allocated - before.allocated == pytest.approx(ballast.numel(), rel=0.1)
    assert after.peak is not None
    assert after.peak >= after.allocated * 0.99  # the kernel batches its page counts
    assert after.total == os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def test_manual_seed_makes_torch_repeat_itself() -> None:
    device = Device.open("cpu")
    device.manual_seed(3)
    first = torch.rand(4)
    device.manual_seed(3)
    assert torch.equal(torch.rand(4), first)


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(4, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv3d(8, 4, 1))


def test_named_layers_compute_in_their_own_dtype_and_return_the_models() -> None:
    model, x = layers(), torch.randn(1, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    expected = layers().double()(x.double())
    plain = model(x)
    apply_precision(model, DOUBLE)
    assert {weight.dtype for weight in model.parameters()} == {torch.float64}
    assert model(x).dtype is torch.float32
    error, plain_error = (model(x) - expected).abs().max(), (plain - expected).abs().max()
    assert error < plain_error  # only the hand-over between layers is rounded to float32


def test_removing_a_policy_restores_dtype_and_result() -> None:
    model, x = layers(), torch.randn(1, 4, 3, 6, 6, generator=torch.Generator().manual_seed(1))
    before = model(x)
    handle = apply_precision(model, DOUBLE)
    handle.remove()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert torch.equal(model(x), before)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model)


def test_the_ascend_policy_keeps_a_bfloat16_vae_as_close_to_the_truth(golden: Path) -> None:
    """In the mean of eight images; of one, either may be the closer."""
    folder = golden / "vae" / "d4_4x8x8"
    latents = torch.randn(8, 4, 1, 2, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        truth = load_vae(folder).decode(latents).sample
        vae = load_vae(folder, torch.bfloat16)
        plain = vae.decode(latents.bfloat16()).sample
        apply_precision(vae, ASCEND_PRECISION)
        mixed = vae.decode(latents.bfloat16()).sample
    dtypes = {type(layer): layer.weight.dtype for layer in vae.modules() if _converted(layer)}
    assert dtypes == {nn.Conv3d: torch.float16, nn.GroupNorm: torch.float32}
    assert mixed.dtype is torch.bfloat16
    assert (mixed - truth).abs().mean() < 1.1 * (plain - truth).abs().mean()


def _converted(layer: nn.Module) -> bool:
    return type(layer) in (nn.Conv3d, nn.GroupNorm)


def test_weights_beyond_the_new_range_are_refused_by_name() -> None:
    model = layers().bfloat16()
    with torch.no_grad():
        model[2].weight.fill_(1e6)
    with pytest.raises(DeviceError, match=r"weights of 2 exceed the range of torch.float16"):
        apply_precision(model, ASCEND_PRECISION)


def test_attention_written_out_is_told_its_softmax_dtype() -> None:
    class Attention(nn.Module):
        softmax_dtype: torch.dtype | None = None

    attention = Attention()
    handle = apply_precision(attention, ASCEND_PRECISION)
    assert attention.softmax_dtype is torch.float32
    handle.remove()
    assert attention.softmax_dtype is None


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "5000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_the_user_s_way_of_waiting_wins(given: dict[str, str], spins: str | None) -> None:
    environment = dict(given)
    share_cores(environment)
    assert environment.get("GOMP_SPINCOUNT") == spins
    assert environment.get("OMP_WAIT_POLICY") == given.get("OMP_WAIT_POLICY")


def test_a_device_that_certainly_cannot_be_used_is_known_without_torch() -> None:
    assert impossible_device("cpu") is None
    assert impossible_device("auto") is None
    if torch.version.cuda is None:
        assert impossible_device("cuda") == "this torch was built without CUDA"
