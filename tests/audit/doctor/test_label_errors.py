"""Label errors: planted ones come first, and their number is about what was planted."""

import builtins

import numpy as np
import pytest
from vfm_runtime.errors import MissingPackageError

from vfm.audit.doctor.label_errors import find_label_errors


def make_clusters(num=300, noise=1.0):
    random = np.random.default_rng(0)
    labels = np.arange(num) % 3
    centers = 3 * np.eye(3, 300)
    features = centers[labels] + noise * random.normal(size=(num, 300)) / 10
    return features.astype(np.float32), labels


def test_planted_errors_are_the_first_suspects():
    features, labels = make_clusters()
    wrong = np.arange(7, 300, 30)
    given = labels.copy()
    given[wrong] = (given[wrong] + 1) % 3
    keys = [str(i) for i in range(300)]
    found = find_label_errors(features, given, keys, 3)
    assert {suspect.position for suspect in found.suspects[:10]} == set(wrong.tolist())
    assert 5 <= found.num_errors <= 12
    assert [labels[s.position] for s in found.flagged] == [s.suggested for s in found.flagged]
    assert 3 <= sum(suspect.error for suspect in found.suspects) <= 13
    assert found.skill > 0.9


def test_clean_labels_have_no_error():
    features, labels = make_clusters()
    found = find_label_errors(features, labels, [str(i) for i in range(300)], 3)
    assert found.num_errors == 0
    assert found.suspects[0].error < 0.5


@pytest.mark.slow
def test_features_that_know_nothing_have_no_skill():
    features, labels = make_clusters()
    labels = np.random.default_rng(1).permutation(labels)
    found = find_label_errors(features, labels, [str(i) for i in range(300)], 3)
    assert found.skill < 0.2


def test_small_classes_are_left_out():
    features, labels = make_clusters()
    labels[:4] = 3
    found = find_label_errors(features, labels, [str(i) for i in range(300)], 4)
    assert found.num_left_out == 4
    assert find_label_errors(features, labels, ["one"] * 300, 4) is None


def test_without_cleanlab_it_says_what_to_install(monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("cleanlab"):
            raise ImportError(name)
        return load(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(
        MissingPackageError, match=r"pip install 'vfm\[doctor\]'.*--label-errors false"
    ):
        find_label_errors(*make_clusters(), [], 3)
