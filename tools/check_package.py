"""Whether a built wheel and a source archive hold what they should, with metadata that an index takes.

    python -m build && python tools/check_package.py dist/*

Needs git, for the files of the package, and `packaging`. Exit code 1 names what is wrong.
"""

from __future__ import annotations

import pathlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence

from packaging.metadata import ExceptionGroup, Metadata

ROOT = pathlib.Path(__file__).resolve().parents[1]
BESIDE = {"LICENSE", "CHANGELOG.md", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "requirements.txt",
          "setup.cfg"}  # of a source archive, beside the package
NEEDED = ("author", "license", "summary", "keywords", "classifiers", "description", "requires_python", "project_urls")


def package_files() -> set[str]:
    """The files of tfspike/ in git."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "tfspike"], capture_output=True, text=True, check=True)
    return set(listed.stdout.split("\n")) - {""}


def wrong_files(found: set[str], wanted: set[str], package: set[str]) -> list[str]:
    """Sentences about what an archive lacks of the package, or has beside it and `wanted`."""
    return [*(f"lacks {name}" for name in sorted(package - found)),
            *(f"holds {name}" for name in sorted(found - package - wanted))]


def wrong_metadata(content: bytes) -> list[str]:
    """Sentences about metadata that an index would refuse, or that lack a field."""
    try:
        made = Metadata.from_email(content, validate=True)
    except ExceptionGroup as errors:
        return [f"metadata: {error}" for error in errors.exceptions]
    found = [f"metadata have no {field}" for field in NEEDED if not getattr(made, field)]
    if made.description_content_type != "text/markdown":
        found.append("the description is not said to be Markdown")
    return found


def check(path: pathlib.Path, package: set[str]) -> list[str]:
    """What is wrong with one archive."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = {name for name in archive.namelist() if not name.endswith("/")}
            about = {name for name in names if ".dist-info/" in name}
            licences = {name.partition("/licenses/")[2] for name in about} - {""}
            metadata = archive.read(next(name for name in about if name.endswith("/METADATA")))
        missing = [f"lacks the licence {name}" for name in sorted({"LICENSE", "tfspike/data/LICENSE"} - licences)]
        return wrong_files(names, about, package) + missing + wrong_metadata(metadata)
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()}
        top = path.name.removesuffix(".tar.gz")
        content = archive.extractfile(f"{top}/PKG-INFO")
        metadata = content.read() if content is not None else b""
    built = {name for name in names if name.startswith("tfspike.egg-info/")}
    missing = [f"lacks {name}" for name in sorted(BESIDE - names)]
    return wrong_files(names, built | BESIDE, package) + missing + wrong_metadata(metadata)


def main(paths: Sequence[str]) -> int:
    """Checks archives; prints what is wrong."""
    package = package_files()
    wrong = [f"{path}: {sentence}" for path in paths for sentence in check(pathlib.Path(path), package)]
    kinds = {pathlib.Path(path).suffix for path in paths}
    if kinds != {".whl", ".gz"}:
        wrong.append("give a wheel and a source archive")
    print("\n".join(wrong) or f"{len(paths)} archives hold the package's {len(package)} files, licences and metadata.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
