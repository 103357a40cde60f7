"""Packaging. The version ranges of every dependency stand here and nowhere else; `make lock` pins them by hash.

detectron2 is missing on purpose: it is not on PyPI, most users have built their own, and pip must not replace it.
`make setup` installs a copy where there is none.
"""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "resnext_det/__init__.py").read_text("utf-8"), re.M)[1]

EXTRAS = {
    # scikit-learn holds the quickstart's handwritten digits; detectron2 draws with OpenCV.
    "quickstart": ["scikit-learn>=1.3,<2", "opencv-python-headless>=4.7,<6"],
    "webdataset": ["webdataset>=0.2.86,<2"],
    "export": ["onnx>=1.16,<2", "onnxruntime>=1.18,<2", "onnxscript>=0.3,<1"],
    "openvino": ["openvino>=2024.6,<2027", "nncf>=2.15,<4"],  # int8 on CPUs
    # Trackers (the key TRACKER): not in dev, they bring some hundred MB; their tests skip without them.
    "mlflow": ["mlflow-skinny>=3.17,<4"],
    "wandb": ["wandb>=0.31,<1"],
    "parquet": ["pyarrow>=20,<28"],
    "ray": ["ray[data]>=2.60,<3"],
    "channels": ["tifffile>=2025.5.10,<2027", "opencv-python-headless>=4.7,<6"],
    "server": ["starlette>=0.50,<2", "uvicorn>=0.38,<1"],  # of examples/server.py
    "hub": ["huggingface_hub>=2.4,<3"],
    "docs": ["sphinx>=8.1,<10", "myst-parser>=4,<6", "furo>=2024.8.6,<2027"],
}
# timm's networks and those of pretrainedmodels (which forgets to name six) are oracles of the tests.
EXTRAS["dev"] = [
    "hypothesis>=6.100,<7",
    "mypy>=1.13,<3",
    "munch>=4,<5",
    "pretrainedmodels>=0.7.4,<0.8",
    "pytest>=8.1,<10",
    "pytest-xdist>=3.5,<4",
    "ruff>=0.12,<1",
    "six>=1.16,<2",
    "timm>=1,<2",
    "types-PyYAML>=6,<7",
    "types-tabulate>=0.9,<1",
    *EXTRAS["quickstart"],
    *EXTRAS["webdataset"],
    *EXTRAS["export"],
    *EXTRAS["openvino"],
    *EXTRAS["parquet"],
    *EXTRAS["channels"],
    *EXTRAS["server"],
    *EXTRAS["docs"],
]


class BuildWithConfigs(build_py):
    """Puts a copy of ``configs/`` into the built package. An editable install reads the clone's own."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "resnext_det", "configs")
            shutil.rmtree(target, ignore_errors=True)  # left over from another build: files that are gone since
            shutil.copytree(ROOT / "configs", target, ignore=shutil.ignore_patterns("__pycache__"))


setup(
    name="resnext-det",
    version=VERSION,
    description="ResNeXt for detection: the paper's networks, pretraining and C4 Faster R-CNN for detectron2",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["resnext_det", "resnext_det.*"]),
    package_data={"resnext_det": ["py.typed", "reporting/report.html"]},
    install_requires=[
        "torch>=2.4,<3",
        "torchvision>=0.19,<1",
        "numpy>=1.24,<3",
        "Pillow>=9.4,<14",
        "pycocotools>=2.0.7,<3",
        "hotcoco>=1.3,<2",
        "msgspec>=0.18,<1",
        "fvcore>=0.1.5.post20211023,<0.2",
        "iopath>=0.1.9,<0.2",
        "yacs>=0.1.8,<0.2",
        "matplotlib>=3.7,<4",
        "tensorboard>=2.12,<3",
        "safetensors>=0.4,<1",
        "PyYAML>=6,<7",
        "tqdm>=4.60,<5",
    ],
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithConfigs},
    entry_points={"console_scripts": ["resnext-det = resnext_det.cli:main"]},
)
