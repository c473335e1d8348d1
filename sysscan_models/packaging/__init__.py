"""The deliverable: a folder of GGUF models with their manifest and model card; making, checking and opening it.

It reads records and files and never a model's tensors, so it needs neither gguf nor llama.cpp.
"""

from sysscan_models.packaging.assembly import package, package_files
from sysscan_models.packaging.manifest import CARD, MANIFEST, Manifest, RoleEntry
from sysscan_models.packaging.opening import Check, LoadedPackage, Verification, load_package, verify

__all__ = [
    "CARD", "MANIFEST", "Check", "LoadedPackage", "Manifest", "RoleEntry", "Verification", "load_package", "package",
    "package_files", "verify",
]  # fmt: skip
