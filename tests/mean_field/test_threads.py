"""The default number of threads: environment variables, control groups, limits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import samples

import deeplab_crf
from deeplab_crf import MeanField, PermutohedralLattice, dense_crf
from deeplab_crf.runtime.threads import cgroup_quota

COUNT = "import deeplab_crf; print(deeplab_crf.get_num_threads())"
UNSET = {"DEEPLAB_CRF_NUM_THREADS": "", "OMP_NUM_THREADS": ""}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, "3"),
        ({"OMP_NUM_THREADS": "5,2"}, "5"),  # nested regions
        ({"OMP_NUM_THREADS": " 3 "}, "3"),
        ({"OMP_NUM_THREADS": "999999999999"}, None),
        ({"OMP_NUM_THREADS": "1000000"}, "1024"),
        ({"OMP_NUM_THREADS": "0"}, None),
        ({"OMP_NUM_THREADS": "many"}, None),
        ({"OMP_NUM_THREADS": "3", "DEEPLAB_CRF_NUM_THREADS": "4"}, "4"),
        ({}, None),
    ],
)
def test_the_environment_sets_the_default(variables: dict[str, str], expected: str | None) -> None:
    """None: as without the variables. OpenMP ignores what is no count, too."""
    done = samples.run_python(COUNT, **{**UNSET, **variables})
    assert done.returncode == 0, done.stderr
    assert done.stdout == samples.run_python(COUNT, **UNSET).stdout if expected is None else f"{expected}\n"


@pytest.mark.parametrize("value", ["0", "-3", "1.5", "1025", "2147483648", "9" * 5000, "two"])
def test_a_wrong_variable_of_ours_is_named(value: str) -> None:
    done = samples.run_python(COUNT, DEEPLAB_CRF_NUM_THREADS=value)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: DEEPLAB_CRF_NUM_THREADS must be a whole number in [1, 1024]; got"), done.stderr
    assert "0x" not in last
    assert len(last) < 300


@pytest.mark.parametrize(
    "threads",
    [0, -1, True, 1.0, "2", 1025, 10**6, 2**31, 2**63, 10**5000, np.float32(2), None],
    ids=lambda value: type(value).__name__,
)
def test_a_wrong_number_of_threads_is_named(threads: object) -> None:
    calls = [
        lambda: MeanField(5, 3, threads=threads),  # type: ignore[arg-type]
        lambda: PermutohedralLattice(np.zeros((5, 2)), threads=threads),  # type: ignore[arg-type]
        lambda: PermutohedralLattice(np.zeros((5, 2))).filter(np.ones(5), threads=threads),  # type: ignore[arg-type]
        lambda: dense_crf(None, logits=np.zeros((2, 3, 4)), kernels=(), threads=threads),  # type: ignore[arg-type]
    ]
    if threads is None:  # the default, but not for the function that sets it
        for call in calls:
            call()
        calls = []
    for call in [*calls, lambda: deeplab_crf.set_num_threads(threads)]:  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^threads must be a whole number in \[1, 1024\]; got"):
            call()


def test_numbers_of_numpy_are_taken() -> None:
    scores = np.zeros((2, 3, 4))
    want = dense_crf(None, logits=scores, kernels=(deeplab_crf.Gaussian(),), iterations=2, threads=2)
    got = dense_crf(
        None,
        logits=scores,
        kernels=(deeplab_crf.Gaussian(),),
        iterations=np.int16(2),
        threads=np.int64(2),  # type: ignore[arg-type]
    )
    np.testing.assert_array_equal(got, want)


def files(root: Path, contents: dict[str, str]) -> Path:
    """A tree of small files."""
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V1 = "12:cpuset:/\n4:cpu,cpuacct:/slurm/uid_1000/job_7\n1:name=systemd:/\n0::/init.scope\n"
QUOTA = "cpu.cfs_quota_us"
PERIOD = "cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("contents", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense"}, None),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "400000 100000\n"}, 4.0),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a/b/cpu.max": "800000 100000\n",
            },
            2.0,
        ),
        # A container that knows the host's path only: its own group is mounted as the root.
        ({"proc/self/cgroup": "0::/docker/1f\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3.0),
        (
            {
                "proc/self/cgroup": V1,
                f"sys/fs/cgroup/cpu,cpuacct/slurm/uid_1000/job_7/{QUOTA}": "250000\n",
                f"sys/fs/cgroup/cpu,cpuacct/slurm/uid_1000/job_7/{PERIOD}": "100000\n",
                f"sys/fs/cgroup/cpu,cpuacct/{QUOTA}": "-1\n",
                f"sys/fs/cgroup/cpu,cpuacct/{PERIOD}": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": V1,
                f"sys/fs/cgroup/cpu/{QUOTA}": "50000\n",
                f"sys/fs/cgroup/cpu/{PERIOD}": "100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": V1, f"sys/fs/cgroup/cpu/{QUOTA}": "50000\n", f"sys/fs/cgroup/cpu/{PERIOD}": "0"}, None),
    ],
)
def test_quota_of_the_control_groups(contents: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    """Formats after the kernel's Documentation/admin-guide/cgroup-v2.rst and scheduler/sched-bwc.rst."""
    assert cgroup_quota(files(tmp_path, contents)) == quota


@pytest.mark.parametrize(("quota", "count"), [(0.1, 1), (1.5, 2), (64.0, 6), (None, 6)])
def test_the_default_keeps_to_quota_and_affinity(
    quota: float | None, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deeplab_crf.runtime import threads

    for name in UNSET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _process: set(range(6)), raising=False)
    assert threads._default_num_threads() == count
