import shutil

import pytest
import vfm_runtime

from tests.runtime import toy, videos


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """A whole bundle; tests must not change it."""
    return toy.build(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture
def own_bundle(bundle, tmp_path):
    """A copy that a test may damage."""
    return shutil.copytree(bundle, tmp_path / "bundle")


@pytest.fixture(scope="session")
def model(bundle):
    return vfm_runtime.load(bundle, device="cpu")


@pytest.fixture(scope="session")
def mp4():
    """The bytes of a video of sixty numbered frames."""
    return videos.write(videos.PICTURES)
