"""Pictures take a reader's own arrays, draw what the arrays say, and carry a text for those who do not see them."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from asap_ref import attention_scores, sinkhorn, transport_plan
from asap_ref.lab import diagrams, pictures, time_pictures
from asap_ref.lab.clouds import pair_of_clouds, queries_and_keys


@pytest.fixture
def clouds():
    return pair_of_clouds(9, 6)


def test_the_pair_is_the_same_at_every_call_and_centred():
    for first, second in zip(pair_of_clouds(9, 6), pair_of_clouds(9, 6), strict=True):
        assert np.array_equal(first, second) and np.allclose(first.mean(axis=0), 0)


def test_a_doubly_stochastic_plan_sees_the_inner_product_as_the_distance(clouds):
    queries, keys = clouds
    q, k = queries_and_keys(queries, keys, sharpness=2.0)
    by_product = attention_scores(q, k)
    by_distance = -np.sum((queries[:, None] - keys) ** 2, axis=-1)  # 2 times minus half the square
    plans = [transport_plan(S, sinkhorn(S, n_iter=400)) for S in (by_product, by_distance)]
    assert np.allclose(*plans, atol=1e-8)


def test_lines_are_as_wide_as_their_mass_and_keys_as_large_as_their_column_sum(clouds):
    queries, keys = clouds
    P = np.zeros((9, 6))
    P[:, 0], P[0] = 1.0, [0.5, 0.5, 0, 0, 0, 0]
    lines, dots, squares = pictures.plot_plan(P, queries, keys).axes[0].collections
    assert len(lines.get_segments()) == 10 and len(dots.get_offsets()) == 9
    assert lines.get_linewidths()[0] < lines.get_linewidths()[-1]
    assert squares.get_sizes().argmax() == 0 and squares.get_sizes()[2] == squares.get_sizes().min()
    assert squares.get_offsets()[:, 0].min() > dots.get_offsets()[:, 0].max()  # side by side


def test_plans_share_one_scale_and_the_teacher_has_no_difference(clouds):
    queries, keys = clouds
    plans = {"softmax": np.eye(9, 6), "teacher": np.full((9, 6), 1 / 6)}
    fig = pictures.plot_plans(plans, queries, keys, teacher="teacher")
    bars, others = fig.axes[:2]
    assert bars.get_ylim() == others.get_ylim() and len(fig.axes) == 6
    off = fig.axes[4].get_title()
    assert off == f"off by {np.abs(plans['softmax'] - plans['teacher']).sum():.1f} in all"


def test_a_dual_is_centred_and_its_difference_is_on_the_same_scale(clouds):
    f = np.arange(9.0)
    fig = pictures.plot_dual({"a": f + 7, "b": 2 * f}, clouds[0], difference=("b", "a"))
    a, b, difference, _ = (axis.collections[0] for axis in fig.axes)
    assert np.allclose(a.get_array().mean(), 0) and np.allclose(difference.get_array(), f - f.mean())
    assert a.get_clim() == b.get_clim() == difference.get_clim()


def test_the_zigzag_of_the_hill_is_that_of_sinkhorn():
    S = np.array([[1.0, 0.2], [0.6, -1.0]])
    axis = diagrams.plot_hill(S, epsilon=0.5, n_iter=3).axes[0]
    path = axis.lines[0].get_xydata()
    expected = [sinkhorn(S, n_iter=t, epsilon=0.5) for t in range(4)]
    assert np.allclose(path[::2, 0], [duals.query[0] - duals.query[1] for duals in expected])
    assert np.allclose(path[::2, 1], [duals.key[0] - duals.key[1] for duals in expected])

    (top,) = (line.get_xydata()[0] for line in axis.lines if line.get_label() == "the top")
    converged = sinkhorn(S, n_iter=400, epsilon=0.5)
    assert np.allclose(top, [dual[0] - dual[1] for dual in (converged.query, converged.key)])


def test_a_figure_is_shown_as_a_sharp_png_with_its_text(clouds, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.append((data, metadata)))
    pictures.show(diagrams.plot_pipeline("sort"), alt="the way")
    data, metadata = shown[0]
    picture = Image.open(io.BytesIO(data["image/png"]))
    assert (
        metadata["image/png"] == {"alt": "the way", "width": 900, "height": 210}
        and data["text/plain"] == "the way"
    )
    assert picture.size == (1800, 420)
    with pytest.raises(ValueError, match="alt is empty"):
        pictures.show(diagrams.plot_pipeline("sort"), alt=" ")


def test_an_animation_is_one_png_of_all_its_frames(clouds, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata, raw: shown.append(data["image/png"]))
    pictures.show(diagrams.turning_slice(clouds[0][:6], clouds[1], n_frames=3), alt="a slice turns")
    assert Image.open(io.BytesIO(shown[0])).n_frames == 3


def test_matches_are_blue_where_right_orange_where_wrong_and_hollow_where_nobody_names():
    points = np.random.default_rng(0).standard_normal((4, 2))
    plan = np.eye(4)[[0, 0, 2, 3]]
    fig = pictures.plot_matches({"a plan": plan, "numbers": [0, -1, 2, 3]}, points, points, [0, 1, 2, 3])
    right, wrong, first, named, hollow = fig.axes[0].collections
    assert [len(part.get_segments()) for part in (right, wrong)] == [3, 1]
    for part, colour in ((right, "sinkhorn"), (wrong, "warm")):
        assert to_hex(part.get_colors()[0]) == pictures.COLOURS[colour].lower()
    assert len(first.get_offsets()) == 4 and len(named.get_offsets()) == 3 and len(hollow.get_offsets()) == 1
    assert named.get_sizes().argmax() == 0  # two name it
    titles = [axis.get_title() for axis in fig.axes]
    assert titles == ["a plan\n3 of 4 right, 3 named", "numbers\n3 of 4 right, 3 named"]
    unknown = pictures.plot_matches({"softmax": plan}, points, points)
    assert unknown.axes[0].get_title() == "softmax\n3 named"
    assert not unknown.axes[0].collections[1].get_segments()


@pytest.mark.parametrize("slowest", [1.3, 3.0, 8.0, 30.0, 400.0, 20000.0])
@pytest.mark.parametrize("fastest", [0.037, 1.0, 640.0])
def test_the_times_of_a_front_are_apart_from_each_other_however_far_they_reach(fastest, slowest):
    points = [(fastest * t, 1 / t, "") for t in np.geomspace(1, slowest, 5)]
    fig = time_pictures.plot_front({"Sinkhorn": points}, figsize=(3.1, 3.4))  # one of three in a row
    fig.draw_without_rendering()
    (axis,) = fig.axes
    low, high = axis.get_xlim()
    ticks = [*axis.xaxis.get_major_ticks(), *axis.xaxis.get_minor_ticks()]
    labels = [tick.label1 for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes))


def test_fronts_are_a_line_for_each_kind_with_labels_on_the_solid_ones():
    entries = {("Sinkhorn", "1"): (1, 0.2), ("Sinkhorn", "3"): (2, 0.1), ("Sinkhorn in tiles", "1"): (3, 0.2)}
    fig = time_pictures.plot_fronts({64: entries, 4096: entries | {("ASAP", ""): (1.5, 0.05)}})
    assert [axis.get_title() for axis in fig.axes] == ["64 points", "4,096 points"]
    lines = {line.get_label(): line for line in fig.axes[1].lines}
    assert list(lines) == ["Sinkhorn", "Sinkhorn in tiles", "ASAP"]
    assert np.array_equal(lines["Sinkhorn"].get_xydata(), [(1, 0.2), (2, 0.1)])
    assert [text.get_text() for text in fig.axes[0].texts if text.get_text()] == ["1", "3"]
    assert lines["Sinkhorn in tiles"].get_linestyle() == ":"
    assert [text.get_text() for text in fig.legends[0].texts] == list(lines)


def test_a_map_has_the_colour_of_who_wins_and_pale_fields_are_told():
    won = {(1, 64): ("over-relaxed in tiles", "2+1"), (2, 64): ("ASAP", "A"), (1, 128): None}
    fig = time_pictures.plot_cheapest(won, ties={(2, 64)})
    (axis,) = fig.axes
    relaxed, asap, none = axis.patches
    assert [to_hex(field.get_facecolor()) for field in (relaxed, asap)] == [
        to_hex(pictures.COLOURS[name]) for name in ("other", "asap")
    ]
    assert relaxed.get_alpha() == none.get_alpha() == 1 > asap.get_alpha()
    assert asap.get_xy() == (1, 0) and none.get_xy() == (0, 1)
    assert [text.get_text() for text in axis.texts] == ["2+1", "A", "none"]
    told = [text.get_text() for text in fig.legends[0].texts]
    assert told == ["over-relaxed", "ASAP", "none", "pale: nearly a tie"]


def test_a_plan_of_another_shape_is_refused_before_it_is_drawn():
    points = np.random.default_rng(0).standard_normal((4, 2))
    for wrong in (np.eye(4)[:, :3], np.eye(5)):  # turned, as of 3 and 4 points; with its bins
        with pytest.raises(ValueError, match=r"a plan must be \(4, 4\), without bins"):
            pictures.plot_matches({"plan": wrong}, points, points)
