import asyncio
import shutil

import pytest
from vfm_runtime import BundleError
from vfm_runtime.server.batching import ClosedError
from vfm_runtime.server.bundle_paths import parse_bundle_paths
from vfm_runtime.server.repository import UnknownModelError

from tests.runtime import toy
from tests.runtime.server.repository.swaps import (
    count,
    failures,
    reloads,
    replace_files,
    seed_of,
)


def test_one_model(put, make, metrics):
    async def main():
        repository = make(put(1, "toy"))
        served = repository.find_model()
        assert (served.name, served.version) == ("toy", "1")
        assert served.model.labels == toy.LABELS
        assert repository.list_models() == [served]
        assert repository.find_model("toy") is repository.find_model("toy", "1") is served
        assert await seed_of(served) == 1
        info = 'vfm_model_info{device="cpu",model="toy",precision="fp32",task="classification",'
        assert count(metrics, info + 'version="1"}') == 1
        assert (reloads(metrics), failures(metrics)) == (0, 0)
        await repository.close()

    asyncio.run(main())


def test_several_models_and_versions(put, make, tmp_path):
    put(1, "many/2")
    put(2, "many/10")
    put(3, "many/draft")
    (tmp_path / "many/11").mkdir()  # no manifest yet: still being copied
    (tmp_path / "many/007").mkdir()

    async def main():
        repository = make(f"b={tmp_path / 'many'}", f"a={put(3, 'single')}")
        found = [(served.name, served.version) for served in repository.list_models()]
        assert found == [("a", "1"), ("b", "2"), ("b", "10")]
        assert await seed_of(repository.find_model("a")) == 3
        assert await seed_of(repository.find_model("b")) == 2
        assert await seed_of(repository.find_model("b", "2")) == 1
        with pytest.raises(UnknownModelError, match=r"^There are several models: b, a\. Name one"):
            repository.find_model()
        with pytest.raises(UnknownModelError, match=r"^There is no model 'c'\. Models: b, a\.$"):
            repository.find_model("c")
        text = r"^The model 'b' has no version '11'\. Versions: 2, 10\.$"
        with pytest.raises(UnknownModelError, match=text):
            repository.find_model("b", "11")
        with pytest.raises(UnknownModelError) as caught:
            repository.find_model("x" * 5000)
        assert len(str(caught.value)) < 150
        await repository.close()

    asyncio.run(main())


def test_words(tmp_path):
    (tmp_path / "x=y").mkdir()
    (tmp_path / "current").symlink_to(tmp_path / "x=y")
    words = [f"{tmp_path}/current/", f"a={tmp_path / 'x=y'}", "b=some/folder", "old.one-2_"]
    paths = parse_bundle_paths(words)
    assert list(paths) == ["current", "a", "b", "old.one-2_"]
    assert paths["a"] == tmp_path / "x=y"
    assert all(path.is_absolute() for path in paths.values())


@pytest.mark.parametrize(
    ("word", "name"), [("a b=folder", "a b"), ("=folder", ""), ("größe", "größe"), ("/", "")]
)
def test_bad_names(word, name):
    text = f"^The bundle '{word}' has the name '{name}'. A name has letters, .* Give NAME=FOLDER.$"
    with pytest.raises(ValueError, match=text):
        parse_bundle_paths([word])


def test_names_that_are_taken(tmp_path):
    text = r"^Two bundles are named 'a': /x/a and /y\. Name one of them otherwise: NAME=FOLDER\.$"
    with pytest.raises(ValueError, match=text):
        parse_bundle_paths(["/x/a", "a=/y"])
    with pytest.raises(ValueError, match=r"no bundle to serve\. Give FOLDER or NAME=FOLDER\."):
        parse_bundle_paths([])


def test_start_without_a_bundle(put, make, tmp_path):
    with pytest.raises(BundleError, match=r"There is no bundle at .*missing"):
        make(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match=r"is not a bundle: it has no vfm\.json"):
        make(tmp_path / "empty")
    damaged = put(1, "damaged")
    (damaged / "model.onnx").write_bytes(b"half")
    with pytest.raises(BundleError, match=r"model\.onnx is damaged"):
        make(put(1, "good"), damaged)


def test_start_with_a_damaged_version(put, make, metrics, caplog):
    put(1, "toy/1")
    (put(2, "toy/2") / "model.onnx").write_bytes(b"half")

    async def main():
        repository = make(put(3, "other"), put(1, "toy/3").parent)
        assert [served.version for served in repository.list_models()] == ["1", "1", "3"]
        await repository.refresh()
        await repository.close()

    asyncio.run(main())
    assert failures(metrics) == 1
    assert "toy, version 2, cannot be loaded; it is not served. " in caplog.text


def test_versions_come_and_go(put, make, metrics, tmp_path):
    put(1, "toy/1")

    async def main():
        repository = make(tmp_path / "toy")
        put(2, "toy/2")
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        assert await seed_of(repository.find_model("toy", "1")) == 1
        old = repository.find_model("toy", "1")
        shutil.rmtree(tmp_path / "toy/1")
        await repository.refresh()  # it may be on its way back
        assert repository.find_model("toy", "1") is old
        await repository.refresh()
        with pytest.raises(UnknownModelError, match=r"no version '1'\. Versions: 2\."):
            repository.find_model("toy", "1")
        assert await seed_of(old) == 1
        labels = '{device="cpu",model="toy",precision="fp32",task="classification",version='
        assert count(metrics, f'vfm_model_info{labels}"1"}}') is None
        assert count(metrics, f'vfm_model_info{labels}"2"}}') == 1
        # The last one stays.
        shutil.rmtree(tmp_path / "toy/2")
        for _ in range(3):
            await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        put(3, "toy/3")
        await repository.refresh()
        await repository.refresh()
        assert [served.version for served in repository.list_models()] == ["3"]
        await repository.close()

    asyncio.run(main())


def test_new_version_that_is_damaged(put, make, metrics, tmp_path, bundles):
    put(1, "toy/1")

    async def main():
        repository = make(tmp_path / "toy")
        (put(2, "toy/2") / "model.onnx").unlink()
        await repository.refresh()
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 1
        assert failures(metrics) == 1
        shutil.copy(bundles / "2" / "model.onnx", tmp_path / "toy/2")
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        await repository.close()

    asyncio.run(main())


def test_watch(put, make, bundles, monkeypatch):
    place = put(1, "toy")

    async def main():
        repository = make(place, reload_every=0.02)
        watching = asyncio.create_task(repository.watch())
        replace_files(bundles / "2", place)
        for _ in range(500):
            await asyncio.sleep(0.01)
            if await seed_of(repository.find_model()) == 2:
                break
        assert await seed_of(repository.find_model()) == 2
        watching.cancel()
        await repository.close()
        never = make(place, reload_every=0)
        await asyncio.wait_for(never.watch(), 1)
        await never.close()

    asyncio.run(main())


@pytest.mark.usefixtures("threads_end")
def test_close_answers_what_is_held(put, make, bundles):
    place = put(1, "toy")

    async def main():
        repository = make(place)
        old = repository.find_model()
        replace_files(bundles / "2", place)
        await repository.refresh()
        asked = [asyncio.create_task(seed_of(s)) for s in (old, repository.find_model()) * 10]
        await asyncio.sleep(0)
        await repository.close()
        assert await asyncio.gather(*asked) == [1, 2] * 10
        for served in (old, repository.find_model()):
            with pytest.raises(ClosedError):
                await seed_of(served)

    asyncio.run(main())
