import asyncio
import gc
import logging
import os
import shutil
import threading
import weakref

import onnx
import pytest
from vfm_runtime.server import repository as repository_module
from vfm_runtime.server.batching import ClosedError

from tests.runtime import toy
from tests.runtime.server.repository.swaps import (
    PIXELS,
    by_files,
    by_link,
    by_rename,
    failures,
    none_leaves,
    reloads,
    replace_files,
    seed_of,
)


@pytest.mark.parametrize("change", [by_files, by_rename, by_link])
def test_replaced(put, make, metrics, bundles, tmp_path, change, loads):
    place = tmp_path / "toy"
    if change is by_link:
        place.symlink_to(bundles / "1")
    else:
        put(1, "toy")

    async def main():
        repository = make(place)
        first = repository.find_model()
        assert await seed_of(first) == 1
        change(bundles, place, tmp_path)
        assert repository.find_model() is first
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        # Behind the link: so it cannot lead elsewhere while the files are read.
        assert repository.find_model().model.path == place.resolve()
        assert repository.list_models() == [repository.find_model()]
        await repository.refresh()
        assert len(loads) == 2
        await repository.close()

    asyncio.run(main())
    assert (reloads(metrics), failures(metrics)) == (1, 0)


def test_what_counts_as_a_change(put, make, loads):
    place = put(1, "toy")

    async def main():
        repository = make(place)
        (place / "card.md").write_text("Another card\n")
        (place / "notes.txt").write_text("mine\n")
        await repository.refresh()
        assert len(loads) == 1
        (place / "card.md").write_text("# Toy\n")
        facts = (place / "vfm.json").stat()
        os.utime(place / "vfm.json", ns=(facts.st_atime_ns, facts.st_mtime_ns + 1))
        await repository.refresh()
        assert len(loads) == 2
        await repository.close()

    asyncio.run(main())


def test_half_a_copy(put, make, metrics, bundles, loads, caplog):
    place = put(1, "toy")

    async def main():
        repository = make(place)
        first = repository.find_model()
        whole = (bundles / "2" / "model.onnx").read_bytes()
        shutil.copy(bundles / "2" / "vfm.json", place / "vfm.json")
        (place / "model.onnx").write_bytes(whole[:100])
        for _ in range(3):
            await repository.refresh()
        assert repository.find_model() is first
        assert await seed_of(first) == 1
        assert len(loads) == 2  # tried once, not at every look
        assert failures(metrics) == 1
        assert "toy, version 1, cannot be loaded; the one before it goes on. " in caplog.text
        assert "model.onnx is damaged: its sha256 is" in caplog.text
        # More of it arrives, then all of it; the manifest has long been there.
        (place / "model.onnx").write_bytes(whole[:200])
        await repository.refresh()
        assert (failures(metrics), len(loads)) == (2, 3)
        (place / "model.onnx").write_bytes(whole)
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        assert (reloads(metrics), failures(metrics)) == (1, 2)
        await repository.close()

    asyncio.run(main())


def test_back_to_the_bundle_before(make, metrics, bundles, tmp_path, loads):
    place = tmp_path / "toy"
    place.symlink_to(bundles / "1")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "vfm.json").write_text("{}")

    def lead_to(target):
        (tmp_path / "link").symlink_to(target)
        (tmp_path / "link").replace(place)

    async def main():
        repository = make(place)
        first = repository.find_model()
        for target in (tmp_path / "bad", bundles / "1", tmp_path / "bad"):
            lead_to(target)
            await repository.refresh()
            await repository.refresh()
            assert repository.find_model() is first
        assert failures(metrics) == 2
        assert len(loads) == 3  # for the way back nothing had to be loaded
        await repository.close()

    asyncio.run(main())


def test_model_that_cannot_run_is_not_served(put, make, metrics, bundles, caplog):
    place = put(1, "toy")

    async def main():
        repository = make(place)
        path = place / "model.onnx"
        model = onnx.load(path)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # no batches
        onnx.save(model, path)
        toy.write_vfm_json(place)
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 1
        await repository.close()

    asyncio.run(main())
    assert failures(metrics) == 1
    assert "with an input of shape [8, 16, 16, 3]" in caplog.text


def test_two_changes_at_once(put, make, metrics, bundles, caplog):
    places = [put(1, name) for name in ("a", "b", "c")]

    async def main():
        repository = make(*places)
        replace_files(bundles / "2", places[0])
        (places[1] / "vfm.json").write_text("{}")
        replace_files(bundles / "3", places[2])
        await asyncio.gather(repository.refresh(), repository.refresh())
        assert [await seed_of(served) for served in repository.list_models()] == [2, 1, 3]
        await repository.close()

    asyncio.run(main())
    assert [reloads(metrics, name) for name in "abc"] == [1, 0, 1]
    assert [failures(metrics, name) for name in "abc"] == [0, 1, 0]
    assert "vfm.json is damaged: it must hold 'contract' and 'files'" in caplog.text


@pytest.mark.parametrize("change", [by_files, by_rename, by_link])
def test_change_while_a_load_runs(put, make, metrics, bundles, tmp_path, monkeypatch, change):
    place = tmp_path / "toy"
    if change is by_link:
        place.symlink_to(bundles / "1")
    else:
        put(1, "toy")
    load = repository_module.load
    begun, go_on = threading.Event(), threading.Event()

    def slow(folder, **options):
        model = load(folder, **options)
        begun.set()
        assert go_on.wait(10)
        return model

    async def main():
        repository = make(place)
        monkeypatch.setattr(repository_module, "load", slow)
        if change is by_link:
            (tmp_path / "third").symlink_to(bundles / "3")
            (tmp_path / "third").replace(place)
        else:
            replace_files(bundles / "3", place)
        look = asyncio.create_task(repository.refresh())
        await asyncio.to_thread(begun.wait, 10)
        assert await seed_of(repository.find_model()) == 1  # answers while another loads
        change(bundles, place, tmp_path)
        go_on.set()
        await look
        # What was loaded is out of date already.
        assert await seed_of(repository.find_model()) == 1
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        await repository.close()

    asyncio.run(main())
    assert (reloads(metrics), failures(metrics)) == (1, 0)


def test_request_that_got_the_old_one_is_answered_by_it(put, make, bundles):
    place = put(1, "toy")

    async def main():
        repository = make(place)
        served = repository.find_model()
        batcher, old = served.batcher, weakref.ref(served.model)
        replace_files(bundles / "2", place)
        await repository.refresh()
        # A moment before the swap it took the model; a while after, it asks it for the first time.
        await asyncio.sleep(0.1)
        assert await seed_of(served) == 1
        await repository.refresh()
        assert await seed_of(served) == 1
        assert await seed_of(repository.find_model()) == 2
        asked = asyncio.create_task(seed_of(served))
        del served
        assert await asked == 1
        del asked
        # Nobody holds it any more: its thread ends, and its memory is given back.
        await none_leaves(repository)
        with pytest.raises(ClosedError):
            await batcher.submit({"pixels": PIXELS})
        del batcher
        gc.collect()
        assert old() is None
        await repository.close()

    asyncio.run(main())


@pytest.mark.usefixtures("threads_end")
def test_nothing_is_dropped_under_load(put, make, metrics, bundles, tmp_path):
    place = tmp_path / "toy"
    place.symlink_to(bundles / "1")

    async def main():
        repository = make(place, reload_every=0.02, max_queue=1000)
        watching = asyncio.create_task(repository.watch())
        answers, running = [], True

        async def client(index):
            while running:
                served = repository.find_model()
                await asyncio.sleep(0.001 * (index % 4))  # opens its file
                answers.append(await seed_of(served))

        clients = [asyncio.create_task(client(index)) for index in range(12)]
        for number in range(1, 9):
            (tmp_path / "link").symlink_to(bundles / str(1 + number % 3))
            (tmp_path / "link").replace(place)
            while reloads(metrics) < number:
                await asyncio.sleep(0.01)
        running = False
        await asyncio.gather(*clients)
        assert set(answers) == {1, 2, 3}
        assert await seed_of(repository.find_model()) == 1 + 8 % 3
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        await none_leaves(repository)
        await repository.close()

    asyncio.run(main())
    assert failures(metrics) == 0


def test_bundle_that_disappears(put, make, metrics, bundles, tmp_path, caplog):
    place = put(1, "toy")

    async def main():
        repository = make(place)
        place.rename(tmp_path / "away")
        for _ in range(4):
            await repository.refresh()
        assert await seed_of(repository.find_model()) == 1
        warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
        assert [record.getMessage() for record in warnings] == [
            f"There is no bundle at {place} any more; the one that is loaded goes on. Put one "
            "back, or serve without it from the next start."
        ]
        (tmp_path / "away").rename(place)
        await repository.refresh()
        assert reloads(metrics) == 0  # the same as before
        shutil.rmtree(place)
        await repository.refresh()
        put(2, "toy")
        await repository.refresh()
        assert await seed_of(repository.find_model()) == 2
        await repository.close()

    asyncio.run(main())
    assert (reloads(metrics), failures(metrics)) == (1, 0)
