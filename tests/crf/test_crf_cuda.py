"""What only CUDA has: streams, graphs, several devices, memory that runs out. And bounds of vertices, on every device."""

from __future__ import annotations

import threading

import crf_samples
import pytest
import torch
from devices import Device

from deeplab_crf import Bilateral, DenseCRF, Gaussian

B, L, H, W = 2, 4, 11, 13
KERNELS = (Gaussian(2.5, 2), Bilateral(30, 20, 4))
LOGITS = 2 * crf_samples.normal(B, L, H, W, dtype=torch.float32)
IMAGE = crf_samples.photos(B, H, W)


def _bound(crf: DenseCRF) -> int:
    return max(sum(counts) for counts in crf.vertices(LOGITS, IMAGE))


@pytest.mark.usefixtures("device")
def test_vertices_are_counted_image_by_image() -> None:
    crf = DenseCRF(L, KERNELS)
    counts = crf.vertices(LOGITS, IMAGE)
    assert [len(images) for images in counts] == [B, B]
    for image in range(B):
        alone = crf.vertices(LOGITS[image : image + 1], IMAGE[image : image + 1])
        assert [images[image] for images in counts] == [images[0] for images in alone]


@pytest.mark.usefixtures("device")
def test_a_bound_changes_nothing() -> None:
    free = DenseCRF(L, KERNELS, trainable=("weights", "bandwidths"))
    bounded = DenseCRF(L, KERNELS, trainable=("weights", "bandwidths"), max_vertices=_bound(free))
    results = []
    for crf in (free, bounded):
        logits = LOGITS.clone().requires_grad_()
        got = crf(logits, IMAGE)
        results.append([got, *torch.autograd.grad(got.square().sum(), [logits, *crf.parameters()])])
    bounded.check()
    for got, want in zip(*results, strict=True):
        assert torch.equal(got, want)


@pytest.mark.usefixtures("device")
def test_too_small_a_bound_is_told() -> None:
    """By the call on the CPU; by NaN and check() where nobody has looked."""
    bound = _bound(DenseCRF(L, KERNELS))
    crf = DenseCRF(L, KERNELS, max_vertices=bound - 1)

    def refine_and_check() -> None:
        refined = crf(LOGITS, IMAGE)
        assert torch.isnan(refined).any()
        crf.check()

    with pytest.raises(
        ValueError, match=f"max_vertices must not be less than .*got {bound - 1}, and there are {bound}"
    ):
        refine_and_check()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True])
def test_bounds_without_meaning(wrong: object) -> None:
    with pytest.raises(ValueError, match="max_vertices must be a whole number >= 1; got"):
        DenseCRF(L, KERNELS, max_vertices=wrong)


@pytest.fixture
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.mark.cuda
def test_cuda_agrees_with_the_cpu(cuda: torch.device) -> None:
    """Given the same vertices: the features have the CPU's bits."""
    logits, image = 2 * crf_samples.normal(B, L, 60, 80, dtype=torch.float32), crf_samples.photos(B, 60, 80)
    for kernels in (KERNELS, (Gaussian(1, 3), Bilateral(67, 3, 4))):
        crf = DenseCRF(L, kernels, 10)
        want = crf(logits, image)
        counts = crf.vertices(logits, image)
        crf.to(cuda)
        got = crf(logits.to(cuda), image.to(cuda))
        assert crf.vertices(logits.to(cuda), image.to(cuda)) == counts
        assert (got.exp().cpu() - want.exp()).abs().max() <= 1e-5
        assert torch.equal(got, crf(logits.to(cuda), image.to(cuda))), "the same bits in every run"


@pytest.mark.cuda
def test_a_cuda_graph_replays_build_and_inference(cuda: torch.device) -> None:
    crf = DenseCRF(L, KERNELS).to(cuda)
    logits, image = LOGITS.to(cuda), IMAGE.to(cuda)
    other_logits, other_image = logits.flip(0, 2).contiguous(), image.flip(0, 2).contiguous()
    want = [crf(logits, image), crf(other_logits, other_image)]
    bounded = DenseCRF(L, KERNELS, max_vertices=2 * _bound(DenseCRF(L, KERNELS))).to(cuda)
    given_logits, given_image = logits.clone(), image.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        bounded(given_logits, given_image)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        refined = bounded(given_logits, given_image)
    for (new_logits, new_image), expected in zip(((logits, image), (other_logits, other_image)), want, strict=True):
        given_logits.copy_(new_logits)
        given_image.copy_(new_image)
        graph.replay()
        bounded.check()
        assert torch.equal(refined, expected)


@pytest.mark.cuda
def test_bounded_calls_do_not_wait(cuda: torch.device) -> None:
    crf = DenseCRF(L, KERNELS, max_vertices=2 * _bound(DenseCRF(L, KERNELS)), trainable=("weights", "bandwidths"))
    crf.to(cuda)
    logits, image = LOGITS.to(cuda).requires_grad_(), IMAGE.to(cuda)
    crf(logits, image).sum().backward()  # what is looked at once
    torch.cuda.set_sync_debug_mode("error")
    try:
        crf(logits, image).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.cuda
def test_streams_of_several_threads(cuda: torch.device) -> None:
    """Each on its own stream, at the same time, on inputs that its stream has only just been asked to make."""
    crf = DenseCRF(L, KERNELS).to(cuda)
    logits, image = LOGITS.to(cuda), IMAGE.to(cuda)
    want = [crf(logits * scale, image) for scale in range(4)]
    torch.cuda.synchronize()
    got: dict[int, torch.Tensor] = {}

    def run(scale: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
            for _ in range(5):
                result = crf(logits * scale, image)
            torch.cuda.current_stream().synchronize()
            got[scale] = result

    threads = [threading.Thread(target=run, args=(scale,)) for scale in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(got[scale], want[scale]) for scale in range(4))


@pytest.mark.cuda
def test_another_device_than_the_current(cuda: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    crf = DenseCRF(L, KERNELS)
    want = crf.to(cuda)(LOGITS.to(cuda), IMAGE.to(cuda))
    got = crf.to(last)(LOGITS.to(last), IMAGE.to(last))
    assert torch.equal(got.cpu(), want.cpu())
    assert torch.cuda.current_device() == cuda.index


@pytest.mark.cuda
def test_mixed_devices_are_refused(cuda: torch.device) -> None:
    crf = DenseCRF(L, KERNELS)
    with pytest.raises(ValueError, match="logits must be on the device of the layer, cpu"):
        crf(LOGITS.to(cuda), IMAGE.to(cuda))
    with pytest.raises(ValueError, match="image must be on the device of logits"):
        crf.to(cuda)(LOGITS.to(cuda), IMAGE)


@pytest.mark.cuda
def test_memory_that_runs_out_is_an_error_and_no_more(cuda: torch.device) -> None:
    crf = DenseCRF(L, KERNELS).to(cuda)
    want = crf(LOGITS.to(cuda), IMAGE.to(cuda))
    torch.cuda.set_per_process_memory_fraction(0.001)
    torch.cuda.empty_cache()
    try:
        with pytest.raises(torch.cuda.OutOfMemoryError):
            crf(torch.zeros(8, L, 400, 400, device=cuda), torch.zeros(8, 3, 400, 400, device=cuda))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(crf(LOGITS.to(cuda), IMAGE.to(cuda)), want)


@pytest.mark.usefixtures("device")
def test_values_that_are_not_finite(device: Device) -> None:
    crf = DenseCRF(L, KERNELS).to(device.where)
    with pytest.raises(ValueError, match="logits must be finite; got nan"):
        crf(LOGITS * float("nan"), IMAGE)
    with pytest.raises(ValueError, match="features must be finite"):
        crf(LOGITS, IMAGE * float("nan"))
