"""Compares the speed of exact nearest-neighbour search with faiss, scikit-learn and PyTorch.

python benchmarks/neighbours.py --generated 10000 --members 50000 --dimension 512

Compares side_jax's `nearest` (RMSE) with faiss's IndexFlatL2, scikit-learn's brute force, and torch.cdist with topk, on
the same float32 rows, from host memory to indices in host memory. The libraries take turns, so that disturbances affect
all; PyTorch uses the GPU if JAX does. Another contestant is what side_jax would be without proofs: a short list by
distances in float32, put in order in float64. The rows are random normal, a bad case for bounds, since all distances
are similar; or, with --data=template, copies of one row in which few numbers differ by a grey level, as blank scans
are. Also printed: the number of sampled rows with a neighbour that is farther than that of a float64 search, and the
number of rows for which side_jax recomputed its bounds from float32. Missing libraries are skipped. Each library
chooses its own number of threads; the machine must be idle.
"""

import argparse
import functools
import importlib
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # read at JAX's first use; leaves memory for PyTorch

import jax
import jax.numpy as jnp
import numpy as np
import sklearn
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from side_jax.memorization.neighbors import exact_search

OURS, SEED = "side_jax", 0
Contestant = Callable[[np.ndarray, np.ndarray, int], np.ndarray]  # (rows, members, k) -> indices [n, k]


def installed(name: str) -> Any:
    """The module, or None if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings of their dependencies, by version
            return importlib.import_module(name)
    except ImportError:
        return None


def with_faiss(faiss: Any) -> Contestant:
    """Searches with IndexFlatL2."""

    def search(rows: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
        index = faiss.IndexFlatL2(rows.shape[1])
        index.add(members)
        return index.search(rows, k)[1]

    return search


def with_scikit_learn(rows: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
    """Searches with NearestNeighbors by brute force, on all cores."""
    found = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(members)
    return found.kneighbors(rows, return_distance=False)


def with_torch(torch: Any, device: str) -> Contestant:
    """Searches with torch.cdist and topk, 1,024 rows at a time."""

    def search(rows: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
        there = torch.from_numpy(members).to(device)
        parts = [torch.from_numpy(rows[i : i + 1024]).to(device) for i in range(0, len(rows), 1024)]
        found = [torch.cdist(part, there).topk(k, largest=False).indices for part in parts]
        return torch.cat(found).cpu().numpy()

    return search


@functools.partial(jax.jit, static_argnames="size")
def _short_list(rows: jax.Array, members: jax.Array, size: int) -> jax.Array:
    product = jax.lax.dot_general(rows, members, (((1,), (1,)), ((), ())), precision="highest")
    squares = (jnp.square(side).sum(axis=1) for side in (rows, members))
    distances = next(squares)[:, None] - 2 * product + next(squares)[None]
    return jax.lax.top_k(-distances, size)[1]


def with_short_list(rows: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
    """Takes 2 k + 8 by distances in float32, 1,024 rows at a time, and orders them in float64."""
    found = []
    for start in range(0, len(rows), 1024):
        part = rows[start : start + 1024]
        listed = np.sort(np.asarray(_short_list(part, members, 2 * k + 8)), axis=1)
        for row, candidates in zip(part, listed, strict=True):
            exact = np.square(members[candidates].astype(np.float64) - row).sum(axis=1)
            found.append(candidates[np.argsort(exact, kind="stable")[:k]])
    return np.stack(found)


def drawn(data: str, sizes: tuple[int, ...], dimension: int, random: np.random.Generator) -> list[np.ndarray]:
    """Rows of each size, float32 [size, dimension]."""
    if data == "normal":
        return [random.standard_normal((size, dimension), np.float32) for size in sizes]
    template = random.integers(0, 256, dimension)
    rows = [template + (random.random((n, dimension)) < 1e-3) * random.integers(-1, 2, (n, dimension)) for n in sizes]
    return [(row / 127.5 - 1).astype(np.float32) for row in rows]


class Counted:
    """Searches with side_jax and counts the rows whose bounds were recomputed."""

    def __init__(self):
        self.again, self._compare = 0, exact_search._compare

    def __call__(self, rows: np.ndarray, members: np.ndarray, k: int) -> np.ndarray:
        """The indices of the neighbours, [n, k]."""
        self.again = 0
        exact_search._compare = self._counted
        try:
            return exact_search.nearest(rows, members, k)[1]
        finally:
            exact_search._compare = self._compare

    def _counted(self, how: Any, few: Any, *rest: Any) -> Any:
        self.again += len(few)
        return self._compare(how, few, *rest)


def measure(contestants: dict[str, Contestant], data: tuple[Any, ...], rounds: int) -> dict[str, list[float]]:
    """Seconds of each library in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, search in contestants.items():
            start = time.perf_counter()
            search(*data)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=("normal", "template"), default="normal")
    parser.add_argument("--generated", type=int, default=10_000)
    parser.add_argument("--members", type=int, default=50_000)
    parser.add_argument("--dimension", type=int, default=512)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--checked", type=int, default=100, help="rows whose neighbours are also found in float64")
    parser.add_argument("--json", type=Path, help="a file for all numbers")
    options = parser.parse_args()
    random = np.random.default_rng(SEED)
    rows, members = drawn(options.data, (options.generated, options.members), options.dimension, random)

    faiss, torch = installed("faiss"), installed("torch")
    ours = Counted()
    contestants: dict[str, Contestant] = {OURS: ours}
    if faiss:
        contestants["faiss"] = with_faiss(faiss)
    contestants["scikit-learn"] = with_scikit_learn
    contestants["short list"] = with_short_list
    if torch:
        device = "cuda" if jax.default_backend() == "gpu" and torch.cuda.is_available() else "cpu"
        contestants[f"torch {device}"] = with_torch(torch, device)
    about = {"jax_backend": jax.default_backend(), "device": jax.devices()[0].device_kind, "cpus": os.cpu_count()}
    about |= {"machine": platform.machine()} | {key: value for key, value in vars(options).items() if key != "json"}
    about |= {module.__name__: module.__version__ for module in (jax, np, sklearn, faiss, torch) if module}
    print(json.dumps(about), flush=True)
    for name, module in (("faiss", faiss), ("torch", torch)):
        if not module:
            print(f"{name} is left out: it is not installed")

    checked = np.sort(random.choice(len(rows), min(options.checked, len(rows)), replace=False))
    exact = cdist(rows[checked].astype(np.float64), members.astype(np.float64), "sqeuclidean")
    data, truth = (rows, members, options.k), np.sort(exact, axis=1)[:, : options.k]

    def farther(search: Contestant) -> int:
        """The number of checked rows with a neighbour that is farther than the right one; ties are right."""
        distances = np.sort(np.take_along_axis(exact, search(*data)[checked], axis=1), axis=1)
        return int((distances > truth * (1 + 1e-9)).any(axis=1).sum())

    differ = {name: farther(search) for name, search in contestants.items()}
    seconds = measure(contestants, data, options.rounds)

    median = {name: statistics.median(values) for name, values in seconds.items()}
    others = {name: value for name, value in median.items() if name != OURS}
    best = min(others, key=others.get)
    for name, values in seconds.items():
        line = f"  {name:13} {median[name]:8.3f} s ({min(values):.3f}..{max(values):.3f})"
        line += f"  ratio {median[name] / median[OURS]:.3f}"
        print(f"{line}  {differ[name]} of {len(checked)} rows have a farther neighbour than in float64")
    print(f"  {OURS} took the bounds anew of {100 * ours.again / len(rows):.2f}% of the rows")
    print(f"  best other ({best}) / {OURS}: {others[best] / median[OURS]:.3f}")
    if options.json:
        result = {"seconds": seconds, "median": median, "best_other": best, "ratio": others[best] / median[OURS]}
        result |= {"differ": differ, "checked": len(checked), "bounds_anew": ours.again}
        options.json.write_text(json.dumps(about | result, indent=1) + "\n")


if __name__ == "__main__":
    main()
