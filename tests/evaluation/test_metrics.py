"""The confusion matrix and its numbers against brute force, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest

from deeplab_crf.evaluation.metrics import ConfusionMatrix

CLASSES = 5


def random_labels(seed: int, shape: tuple[int, ...] = (13, 17), classes: int = CLASSES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, classes, shape).astype(np.uint8)


def test_the_matrix_counts_every_scored_pixel_of_all_images() -> None:
    matrix, want = ConfusionMatrix(CLASSES), np.zeros((CLASSES, CLASSES), np.int64)
    for seed in range(3):
        labels, predicted = random_labels(seed), random_labels(seed + 10)
        labels[:3, seed] = 255
        matrix.add(predicted, labels)
        for t, p in zip(labels.ravel(), predicted.ravel(), strict=True):
            if t != 255:
                want[t, p] += 1
    np.testing.assert_array_equal(matrix.matrix, want)
    assert matrix.matrix.dtype == np.int64
    assert matrix.num_pixels == 3 * (13 * 17 - 3)


def test_numbers_are_those_of_sets_of_pixels() -> None:
    labels, predicted = random_labels(0), random_labels(1)
    labels[5] = 255
    matrix = ConfusionMatrix(CLASSES)
    matrix.add(predicted, labels)
    scored = labels != 255
    true = [set(np.flatnonzero((labels == c) & scored)) for c in range(CLASSES)]
    seen = [set(np.flatnonzero((predicted == c) & scored)) for c in range(CLASSES)]
    iou = [len(t & p) / len(t | p) for t, p in zip(true, seen, strict=True)]
    np.testing.assert_allclose(matrix.iou, iou)
    assert matrix.mean_iou == pytest.approx(sum(iou) / CLASSES)
    assert matrix.pixel_accuracy == pytest.approx(float((labels == predicted)[scored].mean()))
    recall = [len(t & p) / len(t) for t, p in zip(true, seen, strict=True)]
    np.testing.assert_allclose(matrix.recall, recall)
    assert matrix.class_accuracy == pytest.approx(sum(recall) / CLASSES)


def test_one_matrix_over_the_set_is_not_the_mean_over_images() -> None:
    whole, means = ConfusionMatrix(2), []
    for labels, predicted in (([0, 0, 0, 1], [0, 0, 0, 0]), ([1, 1, 1, 1], [1, 1, 1, 0])):
        one = ConfusionMatrix(2)
        one.add(np.array([predicted]), np.array([labels]))
        whole.merge(one)
        means.append(one.mean_iou)
    assert whole.mean_iou == pytest.approx((3 / 5 + 3 / 5) / 2)
    assert np.mean(means) != pytest.approx(whole.mean_iou)


def test_classes_in_neither_are_left_out_and_named() -> None:
    matrix = ConfusionMatrix(4)
    matrix.add(np.array([[0, 0, 2]]), np.array([[0, 1, 255]]))  # 2 only where nothing is scored; 3 nowhere
    np.testing.assert_array_equal(matrix.iou, [0.5, 0.0, np.nan, np.nan])
    assert matrix.absent == (2, 3)
    assert matrix.mean_iou == 0.25
    assert matrix.class_accuracy == 0.5
    matrix.add(np.array([[3]]), np.array([[0]]))  # predicted, though never true: counts with 0
    assert matrix.absent == (2,)
    assert matrix.mean_iou == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert matrix.class_accuracy == 0.25


def test_nothing_scored_is_not_a_number() -> None:
    matrix = ConfusionMatrix(3)
    matrix.add(np.zeros((2, 2), np.int64), np.full((2, 2), 255))
    assert all(math.isnan(x) for x in (matrix.mean_iou, matrix.pixel_accuracy, matrix.class_accuracy))
    assert matrix.absent == (0, 1, 2)


def test_tensors_and_other_integers_and_another_ignore_value() -> None:
    torch = pytest.importorskip("torch")
    labels, predicted = random_labels(2).astype(np.int16), random_labels(3)
    a, b = ConfusionMatrix(CLASSES, ignore=-1), ConfusionMatrix(CLASSES, ignore=-1)
    labels[0] = -1
    a.add(predicted, labels)
    b.add(torch.from_numpy(predicted.astype(np.int64)), torch.from_numpy(labels))
    np.testing.assert_array_equal(a.matrix, b.matrix)
    assert a.num_pixels == 12 * 17


def test_wrong_input_is_named_and_not_counted() -> None:
    matrix, good = ConfusionMatrix(3), np.zeros((2, 2), np.uint8)
    cases = [
        (ValueError, r"shape of labels, \(2, 2\); got \(2, 3\)", np.zeros((2, 3), np.uint8), good),
        (ValueError, r"labels must be in 0..2 or 255 \(not scored\); got 7", good, good + np.uint8(7)),
        (ValueError, r"labels must be in 0..2 or 255 \(not scored\); got -1", good, good.astype(np.int64) - 1),
        (ValueError, "predicted must be in 0..2; got 3", good + np.uint8(3), good),
        (TypeError, "predicted must be whole numbers; got dtype float64", good / 2, good),
        (TypeError, "labels must be whole numbers; got dtype bool", good, good == 0),
    ]
    for error, message, predicted, labels in cases:
        with pytest.raises(error, match=message):
            matrix.add(predicted, labels)
    assert matrix.num_pixels == 0
    with pytest.raises(ValueError, match="num_classes must be a whole number >= 1; got 0"):
        ConfusionMatrix(0)
    with pytest.raises(ValueError, match="other must have 3 classes; got 4"):
        matrix.merge(ConfusionMatrix(4))
