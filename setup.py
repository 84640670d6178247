"""Packages, and the mapping that ships the top-level ``kernels/`` folder as ``vitkern.kernels``."""

import warnings

from setuptools import find_packages, setup

# setuptools says of every editable install that a folder of its name may be imported first: here that is the same one
warnings.filterwarnings("ignore", message="Editable installation")

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
    include_package_data=False,  # what package_data names, and not folders of data as packages
)
