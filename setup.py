"""What pyproject.toml cannot say: class names and published numbers lie in `data/`, beside the lab.

A wheel holds them as `ovss/data/`, where `ovss.paths.data` finds them; the lab's images and models
stay in the repository.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ovss*"]), "ovss.data"],
    package_dir={"ovss.data": "data"},
    package_data={"ovss": ["py.typed"], "ovss.data": ["vocabularies/*.txt", "published/*"]},
)
