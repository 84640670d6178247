"""Packages, and the mapping that ships the top-level ``kernels/`` folder as ``vitkern.kernels``."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["vitkern", "vitkern.*"]),
        "vitkern.kernels",
        *(f"vitkern.kernels.{name}" for name in find_packages("kernels")),
    ],
    package_dir={"vitkern.kernels": "kernels"},
    package_data={
        "vitkern": ["py.typed"],
        "vitkern.lab": ["proofs.jsonl"],
        "vitkern.lab.compiling": ["golden/*.json"],
    },
)
