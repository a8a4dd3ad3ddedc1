"""Processes and threads: fork after use, the GIL, interrupts, environment variables, the choice of instruction set."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import samples

import deeplab_crf
from deeplab_crf import MeanField, dense_crf, native_info

IMAGE = samples.photo(120, 160)
UNARY = samples.energies(21, 120 * 160).reshape(21, 120, 160)

FORK = """
import multiprocessing, sys
import numpy as np
from deeplab_crf import dense_crf

def run(threads):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 255, (120, 160, 3), dtype=np.uint8)
    unary = generator.normal(size=(21, 120, 160)).astype(np.float32)
    return dense_crf(image, unary=unary, threads=threads)

def child(threads, pipe):
    pipe.send(run(threads).tobytes())

want = run(2).tobytes()  # the thread pool exists now
context = multiprocessing.get_context(sys.argv[1])
for threads in (1, 2, None):
    ends = [context.Pipe(duplex=False) for _ in range(2)]
    workers = [context.Process(target=child, args=(threads, end[1])) for end in ends]
    for worker in workers:
        worker.start()
    for (receiver, _), worker in zip(ends, workers):
        assert receiver.poll(60), "the child hangs"
        assert receiver.recv() == want, "the child computes something else"
        worker.join(60)
        assert worker.exitcode == 0
assert run(2).tobytes() == want, "the parent works on after the fork"
print("good")
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="fork is a matter of POSIX systems")
def test_forked_workers_compute_after_the_parent_did() -> None:
    """libgomp hangs in a child that was forked after its parent used threads; the engine must not."""
    done = samples.run_python(FORK, "fork", timeout=240)
    assert done.stdout.strip() == "good", done.stderr


def heavy_model() -> tuple[MeanField, np.ndarray]:
    """A model of which one iteration takes long enough to be watched."""
    points, labels = 300_000, 21
    model = MeanField(points, labels, threads=1)
    model.add_kernel(samples.features(points, 5).T, 3.0)
    return model, samples.energies(labels, points)


class Heartbeat(threading.Thread):
    """Counts how often Python gets to run while something else goes on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ticks = 0
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.002):
            self.ticks += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def _ticks_during(action: object) -> tuple[int, float]:
    heartbeat = Heartbeat()
    heartbeat.start()
    before, began = heartbeat.ticks, time.perf_counter()
    action()  # type: ignore[operator]
    ticks, elapsed = heartbeat.ticks - before, time.perf_counter() - began
    heartbeat.stop()
    return ticks, elapsed


def test_python_runs_on_while_the_engine_works() -> None:
    """The GIL is released in inference, in the lattice's build and in its filter."""
    model, unary = heavy_model()
    features = samples.features(300_000, 5)
    lattice = deeplab_crf.PermutohedralLattice(features, threads=1)
    values = unary.T.copy()
    actions = {
        "inference": lambda: model.inference(unary, 2),
        "build": lambda: deeplab_crf.PermutohedralLattice(features, threads=1),
        "filter": lambda: lattice.filter(values),
    }
    for name, action in actions.items():
        ticks, elapsed = _ticks_during(action)
        assert ticks >= 0.05 * elapsed / 0.002, f"{name}: {ticks} ticks of 2 ms in {elapsed:.2f} s"


def test_python_threads_compute_side_by_side() -> None:
    """Separate calls, and one model shared: the answers are those of one call after the other."""
    want = dense_crf(IMAGE, unary=UNARY)
    model = MeanField(6000, 9)
    model.add_kernel(samples.features(6000, 5).T, 3.0)
    unaries = [samples.energies(9, 6000, seed=k) for k in range(2)]
    shared_wanted = [model.inference(unary, 5).probabilities for unary in unaries]
    failures: list[str] = []

    def work(position: int) -> None:
        for _ in range(5):
            if not np.array_equal(dense_crf(IMAGE, unary=UNARY, threads=1 + position), want):
                failures.append("dense_crf")
            if not np.array_equal(model.inference(unaries[position], 5).probabilities, shared_wanted[position]):
                failures.append("shared model")

    workers = [threading.Thread(target=work, args=(k,)) for k in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures


INTERRUPT = """
import sys, time
import numpy as np
from deeplab_crf import MeanField
generator = np.random.default_rng(0)
features = np.cumsum(generator.normal(0, 0.1, (5, 200_000)), axis=1).astype(np.float32)
model = MeanField(200_000, 21)
model.add_kernel(10 * np.sin(features / 10), 3.0)
unary = generator.normal(size=(21, 200_000)).astype(np.float32)
print("started", flush=True)
try:
    model.inference(unary, 1_000_000)
except KeyboardInterrupt:
    result = model.inference(unary, 1)  # and the model is still good
    print("interrupted", np.isfinite(result.probabilities).all(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent another way on Windows")
def test_control_c_stops_a_long_inference() -> None:
    process = subprocess.Popen([sys.executable, "-c", INTERRUPT], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "started"
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        began = time.perf_counter()
        output, _ = process.communicate(timeout=30)
        assert output.strip() == "interrupted True"
        assert time.perf_counter() - began < 10
    finally:
        process.kill()


DISPATCH = """
import sys
import numpy as np
from deeplab_crf import PermutohedralLattice, dense_crf, native_info
generator = np.random.default_rng(0)
rows, columns = np.mgrid[:60, :80]
image = np.clip(np.stack([rows * 2, columns, rows + columns], -1) + generator.normal(0, 5, (60, 80, 3)), 0, 255)
results = {"active": np.array(native_info()["cpu"]["active"])}
for dtype in (np.float32, np.float64):
    name = np.dtype(dtype).name
    for labels in (2, 5, 21, 37):
        unary = generator.normal(size=(labels, 60, 80))
        results[f"crf {name} {labels}"] = dense_crf(image.astype(np.uint8), unary=unary, dtype=dtype)
    for dimensions in (1, 2, 5, 9):
        values = generator.normal(size=(3000, 13))
        features = np.cumsum(generator.normal(0, 0.2, (3000, dimensions)), axis=0).astype(dtype)
        lattice = PermutohedralLattice(5 * np.sin(features / 5))
        results[f"vertices {name} {dimensions}"] = np.array(lattice.num_vertices)
        results[f"filter {name} {dimensions}"] = lattice.filter(values, normalization="after")
np.savez(sys.argv[1], **results)
"""


def test_every_instruction_set_gives_the_same_answer(tmp_path: Path) -> None:
    levels = ["baseline", "avx2", "avx512"]
    compiled, detected = native_info()["cpu"]["compiled"], native_info()["cpu"]["detected"]
    runnable = [name for name in compiled if levels.index(name) <= levels.index(detected)]
    assert "baseline" in runnable
    results = {}
    for name in runnable:
        done = samples.run_python(DISPATCH, str(tmp_path / f"{name}.npz"), DEEPLAB_CRF_CPU=name)
        assert done.returncode == 0, done.stderr
        with np.load(tmp_path / f"{name}.npz") as archive:
            results[name] = dict(archive)
    for name, result in results.items():
        assert str(result.pop("active")) == name
        for key, want in results["baseline"].items():
            if key != "active":
                # Each is within 1e-5 (1e-12) of the oracle, on either side.
                tolerance = 2e-12 if "float64" in key else 2e-5
                assert samples.scaled_error(result[key], want) <= tolerance, (name, key)


@pytest.mark.parametrize("value", ["sse9", "AVX-512", "1"])
def test_an_unknown_instruction_set_is_refused(value: str) -> None:
    done = samples.run_python("import deeplab_crf; deeplab_crf.native_info()", DEEPLAB_CRF_CPU=value)
    assert done.returncode != 0
    assert "DEEPLAB_CRF_CPU" in done.stderr
    assert "baseline" in done.stderr
    assert value in done.stderr


def test_an_instruction_set_that_the_processor_lacks_is_refused() -> None:
    cpu = native_info()["cpu"]
    levels = ["baseline", "avx2", "avx512"]
    lacking = [name for name in cpu["compiled"] if levels.index(name) > levels.index(cpu["detected"])]
    if not lacking:
        pytest.skip("this processor has every instruction set that was compiled")
    done = samples.run_python("import deeplab_crf; deeplab_crf.native_info()", DEEPLAB_CRF_CPU=lacking[0])
    assert done.returncode != 0
    assert "DEEPLAB_CRF_CPU" in done.stderr
    assert lacking[0] in done.stderr


def test_number_of_threads() -> None:
    before = deeplab_crf.get_num_threads()
    assert before >= 1
    try:
        deeplab_crf.set_num_threads(3)
        assert deeplab_crf.get_num_threads() == 3
        assert native_info()["threads"] == 3
    finally:
        deeplab_crf.set_num_threads(before)


def test_number_of_threads_from_the_environment() -> None:
    script = "import deeplab_crf; print(deeplab_crf.get_num_threads())"
    assert samples.run_python(script, DEEPLAB_CRF_NUM_THREADS="5").stdout.strip() == "5"
    for value in ("0", "-1", "many"):
        done = samples.run_python(script, DEEPLAB_CRF_NUM_THREADS=value)
        assert done.returncode != 0
        assert "DEEPLAB_CRF_NUM_THREADS" in done.stderr


def test_import_is_lazy() -> None:
    """Nothing heavy before it is used: neither torch ever, nor the engine or NumPy at import."""
    heavy = ("torch", "numpy", "deeplab_crf._native")
    script = f"import sys, deeplab_crf; print([name for name in {heavy} if name in sys.modules])"
    assert samples.run_python(script).stdout.strip() == "[]"


def test_native_info() -> None:
    info = native_info()
    assert set(info) >= {"version", "compiler", "cpu", "threads", "cuda"}
    assert info["cpu"]["active"] in info["cpu"]["compiled"]
    assert info["cuda"]["built"] == (find_spec("deeplab_crf._cuda") is not None)
    assert info["cuda"]["usable"] == (info["cuda"]["devices"] > 0)
    assert bool(info["cuda"]["why"]) == bool(info["cuda"]["cure"]) == (not info["cuda"]["usable"])
