"""What a run was made with. Knows version numbers; imports none of what it names."""

import platform
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("htc-probe", "torch", "transformers", "diffusers", "numpy", "h5py", "pillow")


def environment(device: str) -> dict[str, str]:
    """Versions by package, of Python and the platform, and the `device` in words."""
    machine = {"python": platform.python_version(), "platform": platform.platform(), "device": device}
    return {package: _version(package) for package in _PACKAGES} | machine


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "not installed"
