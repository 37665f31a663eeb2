"""Rules by group: what a bundle answers for each group, without one, and for one that it does not know."""

import base64
import json

import numpy as np
import pytest
from PIL import Image
from vfm_runtime import load
from vfm_runtime.bundle.contract import Contract
from vfm_runtime.cli import main
from vfm_runtime.errors import ContractError, OptionError
from vfm_runtime.tasks.confidence import ConfidenceRules

from tests.runtime import toy, toy_deepfake, toy_several

RULES = {
    "column": "site",
    "criterion": "Equal rates.",
    "general": {"thresholds": [0.0, 0.0, 0.0]},
    "groups": {
        "a": {"cutoff": {"label": "cat", "score": 0.0}},
        "b": {"cutoff": {"label": "cat", "score": 1.0}, "thresholds": [1.0, 1.0, 1.0]},
        "c": None,
    },
}


def contract(rules=RULES, base=toy.CONTRACT):
    return {**base, "format": 2, "group_thresholds": rules}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("grouped") / "toy"
    folder.mkdir()
    metadata = json.dumps(contract())
    toy.save_preprocess(folder / "preprocess.onnx", metadata)
    toy.save_model(folder / "model.onnx", metadata)
    toy.write_vfm_json(folder, contract())
    return folder


def test_each_group_has_its_rules(grouped):
    model = load(grouped, device="cpu")
    photo = toy.photos()[0]
    plain, a, b, c = model.predict([photo] * 4, group=[None, "a", "b", "c"], batch_size=3)
    assert np.array_equal(plain.scores, b.scores)
    others = [label for label, _ in plain.top(3) if label != "cat"]
    assert [each.label for each in (a, b)] == ["cat", others[0]]
    assert plain.label == c.label == plain.top(1)[0][0]
    assert (a.reason, b.reason) == (None, "low_score")
    rows = [each.to_dict() for each in (plain, a, b, c)]
    assert [row["group"] for row in rows] == [None, "a", "b", "c"]
    assert [row["group_rule"] for row in rows] == ["general", "own", "own", "general"]
    assert a.headline().startswith("cat ")
    assert a.headline().endswith("(site a: own rule)")
    assert plain.headline().endswith("(no site given: general rule)")
    assert model.predict(photo, group="a").label == "cat"


def test_what_is_refused(grouped, bundle):
    model, photo = load(grouped, device="cpu"), toy.photos()[0]
    with pytest.raises(
        OptionError, match=r"'bb', and the model knows no such site\. Did you mean 'b'.*a, b, c"
    ):
        model.predict(photo, group="bb")
    with pytest.raises(OptionError, match="There are 1 groups for 2 images"):
        model.predict([photo, photo], group=["a"])
    with pytest.raises(OptionError, match=r"has no rules by group\. Leave it out, or fit them"):
        load(bundle, device="cpu").predict(photo, group="a")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"column": ""}, "'group_thresholds' is .*expected rules by group of images"),
        ({"groups": {}}, "'group_thresholds' is"),
        ({"groups": {"a": 3}}, "'group_thresholds' is"),
        ({"groups": {"a": {"heat": 2}}}, r"\['heat'\] are no rules"),
        ({"groups": {"a": {"temperature": 0}}}, "'temperature' needs a number above 0"),
        ({"groups": {"a": {"temperature": "hot"}}}, "'temperature' needs a number above 0"),
        ({"groups": {"a": {"thresholds": [0.5]}}}, "3, one for each label"),
        (
            {"groups": {"a": {"cutoff": {"label": "dog", "score": 0.5}}}},
            "needs a 'label' of the model",
        ),
        ({"general": {"cutoff": {"label": "cat", "score": 2}}}, "a 'score' from 0 to 1"),
    ],
)
def test_rules_that_do_not_hold(changes, match):
    with pytest.raises(ContractError, match=match):
        Contract.from_dict(contract({**RULES, **changes}))


@pytest.mark.parametrize("task", ["classification", "multilabel"])
def test_scores_of_a_group_are_those_of_its_temperature(task):
    rules = {**RULES, "general": {}, "groups": {"a": {"temperature": 4.0}, "b": None}}
    base = {**toy.CONTRACT, "task": task, "rules": ConfidenceRules(temperature=2.0).to_dict()}
    task = Contract.from_dict(contract(rules, base)).type
    logits = np.array([[19.0, 1.0, -2.0]])  # a score that float32 takes for 1 is softened too

    def soften(temperature):
        powers = np.exp(logits / temperature)
        total = 1 + powers if task.multilabel else powers.sum()
        return (powers / total).astype(np.float32)

    outputs = {"scores": soften(2.0)}  # as the graph gives them, over the model's own temperature
    for group, temperature in ((None, 2.0), ("a", 4.0), ("b", 2.0)):
        (answer,) = task.for_group(group).predictions(outputs)
        assert answer.scores == pytest.approx(soften(temperature)[0], rel=1e-5)
        assert answer.score == answer.scores.max()


def test_the_contract_keeps_them():
    read = Contract.from_dict(contract())
    assert Contract.from_json(read.to_json()) == read
    assert read.to_dict()["group_thresholds"] == RULES
    with pytest.raises(ContractError, match="none for several heads"):
        Contract.from_dict(contract(base=toy_several.CONTRACT))


def test_a_detector_of_fakes_has_a_threshold_and_a_temperature_by_group():
    rules = {
        **RULES,
        "general": {},
        "groups": {
            "a": {"threshold": -9.0, "num_reals": 120},
            "b": None,
            "c": {"temperature": 4.0, "threshold": 4.5, "real_below": 0.2},
        },
    }
    base = toy_deepfake.contract(decision={"threshold": 9.0, "real_below": 1.0})
    task = Contract.from_dict(contract(rules, base)).type
    outputs = {
        "logits": np.zeros(1, np.float32),
        "heatmaps": np.zeros((1, 4, 4), np.float32),
        "distances": np.zeros(1, np.float32),
    }
    (plain,), (a,) = (task.for_group(group).predictions(outputs) for group in (None, "a"))
    assert (plain.label, a.label) == ("real", "fake")
    assert (a.to_dict()["group"], a.to_dict()["group_rule"]) == ("a", "own")
    assert "By site a: own rule." in a.lines()[0]
    (c,) = task.for_group("c").predictions({**outputs, "logits": np.float32([2])})
    assert (c.label, c.score) == ("undecided", pytest.approx(1 / (1 + np.exp(-0.5))))
    for name, value in (("threshold", "high"), ("temperature", 0), ("real_below", 10.0)):
        bad = {**rules, "groups": {"a": {name: value}}}
        with pytest.raises(ContractError, match=f"'{name}' is"):
            Contract.from_dict(contract(bad, base))


def test_the_command(grouped, tmp_path, capsys):
    for name, photo in zip("xyz", toy.photos(), strict=True):
        Image.fromarray(photo).save(tmp_path / f"{name}.png")
    (tmp_path / "sites.csv").write_text("path,site\nx.png,a\ny.png,\nz.png,b\n")
    images = [str(tmp_path / f"{name}.png") for name in "xyz"]
    table = ["--table", str(tmp_path / "sites.csv")]

    def run(*words):
        code = main(["predict", str(grouped), "--device", "cpu", *images, *words])
        return code, capsys.readouterr()

    code, shown = run("--group-column", "site", *table, "--json")
    rows = [json.loads(line) for line in shown.out.splitlines()]
    assert code == 0
    assert [row["group"] for row in rows] == ["a", None, "b"]
    assert (rows[0]["label"], rows[2]["reason"]) == ("cat", "low_score")
    assert run("--group", "a")[1].out.count("site a: own rule") == 3
    for words, match in [
        (["--group", "q"], "knows no such site. Choices: a, b, c"),
        (["--group-column", "site"], "goes with --table CSV"),
        (["--group-column", "age", *table], "has no column 'age'. Columns: path, site"),
        (["--group", "a", "--group-column", "site", *table], "Give one"),
    ]:
        code, shown = run(*words)
        assert code != 0
        assert match in shown.err
    (tmp_path / "sites.csv").write_text("path,site\nx.png,a\n")
    assert "2 of 3 images have no row in" in run("--group-column", "site", *table)[1].err
    assert main(["info", str(grouped), "--device", "cpu"]) == 0
    assert "groups     by site: a, b, c (general rule); Equal rates." in capsys.readouterr().out


def test_the_server(grouped):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient
    from vfm_runtime.server.app import create_app
    from vfm_runtime.server.settings import Settings

    from tests.runtime.server.conftest import LOCAL, encoded

    photo = encoded(toy.photos()[0], "PNG")
    settings = Settings(bundles=(str(grouped),), device="cpu", num_threads=1, reload_every=0)
    with TestClient(create_app(settings), base_url=LOCAL) as client:

        def ask(group=None, **options):
            query = "" if group is None else f"?group={group}"
            return client.post(f"/predict{query}", **options)

        text = base64.b64encode(photo).decode()
        same = [
            ask(files={"file": photo}, data={"group": "a"}),
            ask(json={"data": text, "group": "a"}),
            ask("a", content=photo, headers={"Content-Type": "image/png"}),
        ]
        for answer in same:
            assert answer.status_code == 200, answer.text
            assert answer.json()["answer"]["label"] == "cat"
            assert answer.json()["answer"]["group_rule"] == "own"
        plain = ask(files={"file": photo}).json()["answer"]
        assert (plain["group"], plain["group_rule"]) == (None, "general")
        assert client.get("/v2/models").json()["models"][0]["groups"] == ["a", "b", "c"]
        for answer, match in [
            (ask("q", files={"file": photo}), "knows no such site. Choices: a, b, c"),
            (ask("a", files={"file": photo}, data={"group": "b"}), "in the address and 'b' in the"),
            (ask(json={"data": text, "group": 3}), "'group' is 3. Give a string"),
        ]:
            assert answer.status_code == 422
            assert match in answer.json()["error"]
