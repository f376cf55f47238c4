"""plots: what is drawn is what was measured, the same bytes each time, and no text overlaps."""

import dataclasses
import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qs import files
from qs.config import Config, RunConfig, StarConfig
from qs.evaluation.hard_tokens import Decile
from qs.evaluation.statistics import Estimate
from qs.presets import PRESETS
from qs.studies import plots
from qs.studies.controls import LENGTH, OWN, SAME, TRAINED, ControlRow
from qs.studies.plots import draw_run, nll_range, read_curves, read_steps, smooth

EDGES = [0.0, 0.0004, 0.003, 0.012, 0.05, 0.18, 0.52, 1.1, 2.2, 3.9, 12.84]
DECILES = [
    Decile(low, high, 100 + i, 9, gain=0.01 * (i - 3), interval=0.02 if i else None, nll_base=low)
    for i, (low, high) in enumerate(itertools.pairwise(EDGES))
]
GOLD = {0: 0.13, 1: 0.15, 2: 0.2, 4: 0.75, 5: 0.92, 8: 0.9, 12: 0.85}
finite = st.floats(-1e3, 1e3)


def row(name, gold, seeds=3):
    return ControlRow(
        name=name,
        seeds=seeds,
        gold=Estimate(gold, 0.01),
        gold_seeds=(gold - 0.04, gold + 0.03),
        gold_change=None,
        gold_unrewarded=None,
        nll=1.0,
        useful=None,
        useful_seeds=None,
        weight=0.5,
        other=Estimate(1.1),
        other_change=None,
    )


def write_log(run, steps):
    (run / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in steps))


def write_controls(run, tables):
    named = {title: [dataclasses.asdict(r) for r in rows] for title, rows in tables.items()}
    (run / "controls.json").write_text(json.dumps({"command": "", "tables": named}))


def make(run, objective="quiet", steps=90):
    """A run folder that trained, with n = 5, and was compared if it thinks."""
    run.mkdir()
    preset = PRESETS["tiny"]
    config = dataclasses.replace(
        preset,
        thought=dataclasses.replace(preset.thought, thoughts=5),
        run=dataclasses.replace(preset.run, objective=objective),
    )
    (run / "config.json").write_text(json.dumps(config.to_json()))
    logged = [{"step": s, "loss": 1.0, "nll_base": 1.3 + 0.05 * np.sin(s)} for s in range(1, steps)]
    if objective != "plain":
        for record in logged:
            record |= {
                "nll_talk": 1.2,
                "gain": 0.1,
                "reward": record["step"] / 200,
                "weight_mean": 0.3,
            }
    write_log(run, logged)
    if objective == "quiet":
        trained = [row(OWN, GOLD[5]), row("plain training", 0.132), row("pause tokens", 0.14)]
        trained += [row(f"n = {n}", gold) for n, gold in GOLD.items() if n != 5]
        trained += [row("m = 4", 0.5)]
        evaluated = [row(f"n = {n}", gold * 0.9) for n, gold in GOLD.items()]
        write_controls(run, {SAME: [row(OWN, 0.1)], LENGTH: evaluated, TRAINED: trained})
    return run


def seen(run, look, monkeypatch, deciles=DECILES):
    """What `look` finds in each figure of a run when it is saved, by name."""
    module = pytest.importorskip("matplotlib.figure")
    found, looked = {}, []
    with monkeypatch.context() as patch:
        patch.setattr(module.Figure, "savefig", lambda self, *_, **__: looked.append(look(self)))
        patch.setattr(plots, "write_bytes", lambda path, _: found.update({path.stem: looked[-1]}))
        draw_run(run, deciles)
    return found


def lines(figure):
    """The points of every line, panel by panel."""
    return [[np.stack(line.get_data(), 1) for line in ax.lines] for ax in figure.axes]


def bars(figure):
    """Lower and upper ends of the bars of the first panel, one array for each series."""
    series = (found.get_segments() for found in figure.axes[0].collections)
    return [np.array([bar[:, 1] for bar in found if len(bar)]) for found in series]


def texts(figure):
    """(text, box in pixels) of everything written in a figure; first the box of the figure."""
    figure.draw_without_rendering()
    found = [*figure.texts, figure._supxlabel]
    for ax in figure.axes:
        legend = ax.get_legend()
        found += [*ax.texts, ax.title, *(legend.get_texts() if legend else [])]
        for axis in (ax.xaxis, ax.yaxis):
            low, high = axis.get_view_interval()
            ticks = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            found += [axis.label, axis.get_offset_text(), *(tick.label1 for tick in ticks)]
    found = [text for text in dict.fromkeys(found) if text and text.get_text()]
    found = [text for text in found if text.get_visible()]
    return [("", figure.bbox), *((text.get_text(), text.get_window_extent()) for text in found)]


def test_pictures_are_written_twice_and_their_names_returned(tmp_path):
    pytest.importorskip("matplotlib")
    run = make(tmp_path / "run")
    stems = ("training", "thought-length", "hard-tokens")
    expected = [run / "plots" / f"{stem}{end}" for stem in stems for end in (".png", ".svg")]
    assert draw_run(run, DECILES) == expected
    for path in expected:
        assert path.read_bytes().startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml")


def test_the_same_run_gives_the_same_bytes_under_any_style_of_a_person(tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    run = make(tmp_path / "run")
    first = draw_run(run, DECILES)
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30, "svg.hashsalt": "else"}):
        second = draw_run(run, DECILES, tmp_path / "a" / "b")
        assert matplotlib.rcParams["font.size"] == 30
    assert [p.parent for p in second] == [tmp_path / "a" / "b"] * 6
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert b"Date" not in one.read_bytes()


@pytest.mark.parametrize(
    ("objective", "deciles", "expected"),
    [
        ("quiet", DECILES, ["training", "thought-length", "hard-tokens"]),
        ("quiet", [], ["training", "thought-length"]),
        ("pause", DECILES[:3], ["training", "hard-tokens"]),
        ("plain", [], ["training"]),
    ],
)
def test_what_was_not_measured_is_not_drawn(tmp_path, monkeypatch, objective, deciles, expected):
    run = make(tmp_path / "run", objective)
    found = seen(run, lambda figure: len(figure.axes), monkeypatch, deciles)
    assert list(found) == expected
    assert found["training"] == (1 if objective == "plain" else 4)


def test_training_shows_every_step_and_its_mean_over_neighbours(tmp_path, monkeypatch):
    run = make(tmp_path / "run", steps=120)
    panels = seen(run, lines, monkeypatch)["training"]
    steps = read_steps(run)
    for panel, key in zip(panels, ["nll_base", "gain", "reward", "weight_mean"], strict=True):
        raw, smoothed = panel[:2]
        assert raw[:, 0].tolist() == smoothed[:, 0].tolist() == list(range(1, 120))
        np.testing.assert_array_equal(raw[:, 1], steps[key])
        np.testing.assert_array_equal(smoothed[:, 1], smooth(steps[key], 2))


def test_thought_length_shows_both_series_their_intervals_and_the_flat_lines(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    ((trained, evaluated, *flat),) = seen(run, lines, monkeypatch)["thought-length"]
    spans = seen(run, bars, monkeypatch)["thought-length"]
    for line, factor in ((trained, 1.0), (evaluated, 0.9)):
        np.testing.assert_allclose(line[:, 0], list(GOLD), atol=0.1)  # a little aside
        np.testing.assert_allclose(line[:, 1], np.array(list(GOLD.values())) * factor)
        interval, seeds = spans.pop(0), spans.pop(0)
        np.testing.assert_allclose(interval - line[:, 1:], [[-0.01, 0.01]] * len(GOLD))
        np.testing.assert_allclose(seeds - line[:, 1:], [[-0.04, 0.03]] * len(GOLD))
    assert [line[0, 1] for line in flat] == [0.132, 0.14]


def test_a_flat_line_without_an_interval_has_no_band(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    controls = json.loads((run / "controls.json").read_text())
    bands = []
    for interval in (0.01, None):
        for each in controls["tables"][TRAINED]:
            each["gold"][1] = interval if each["name"] == "plain training" else each["gold"][1]
        (run / "controls.json").write_text(json.dumps(controls))
        found = seen(run, lambda figure: len(figure.axes[0].patches), monkeypatch)
        bands.append(found["thought-length"])
    assert bands == [2, 1]


def test_hard_tokens_shows_the_gain_and_interval_of_every_decile(tmp_path, monkeypatch):
    def heights(figure):
        return [patch.get_height() for patch in figure.axes[0].patches]

    run = make(tmp_path / "run")
    assert seen(run, heights, monkeypatch)["hard-tokens"] == [d.gain for d in DECILES]
    expected = [(d.gain - d.interval, d.gain + d.interval) for d in DECILES if d.interval]
    np.testing.assert_allclose(seen(run, bars, monkeypatch)["hard-tokens"][0], expected)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
@pytest.mark.parametrize("objective", ["quiet", "pause", "plain"])
def test_all_text_is_inside_the_picture_and_none_covers_another(
    tmp_path, monkeypatch, objective, scale
):
    run = make(tmp_path / "run", objective)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for record in records:
        if objective != "plain":
            record |= {"reward": record["reward"] * scale, "weight_mean": 0.3 * scale}
            record["gain"] = scale / 10
    write_log(run, records)
    if objective == "quiet" and scale < 1:
        same = [row(name, 0.5) for name in (OWN, "n = 1", "plain training", "pause tokens")]
        write_controls(run, {TRAINED: same, LENGTH: same})
    deciles = [dataclasses.replace(d, gain=-abs(d.gain) * scale, interval=None) for d in DECILES]
    for name, ((_, page), *found) in seen(run, texts, monkeypatch, deciles).items():
        assert len(found) > 5
        for text, box in found:
            assert page.x0 <= box.x0 < box.x1 <= page.x1, (name, text)
            assert page.y0 <= box.y0 < box.y1 <= page.y1, (name, text)
        for (one, box), (other, box2) in itertools.combinations(found, 2):
            assert not box.overlaps(box2), (name, one, other)


def legends(figure):
    """Label and colour of every entry of the legends of a figure."""
    entries = []
    for ax in figure.axes:
        if ax.get_legend():
            entries += zip(*ax.get_legend_handles_labels(), strict=True)
    return [(label, line.get_color()) for line, label in entries]


def remark(figure):
    return figure._supxlabel.get_text()


def test_thought_length_says_why_longer_thoughts_gain_less(tmp_path, monkeypatch):
    run = make(tmp_path / "run")
    assert "n > 5: the end vector" in seen(run, remark, monkeypatch)["thought-length"]
    config = json.loads((run / "config.json").read_text())
    config["thought"]["end"] = "drawn"
    (run / "config.json").write_text(json.dumps(config))
    assert "the end vector" not in seen(run, remark, monkeypatch)["thought-length"]


def test_a_legend_names_the_lines(tmp_path, monkeypatch):
    found = seen(make(tmp_path / "run"), legends, monkeypatch)
    assert [label for label, _ in found["thought-length"]] == [
        "trained with n",
        "trained with n = 5,\nevaluated with n",
        "plain training",
        "pause tokens",
    ]
    assert len({color for _, color in found["thought-length"]}) == 4


@pytest.mark.parametrize(
    ("objective", "reward", "by", "unit"),
    [
        ("quiet", "information-gain", "thoughts", "nats"),
        ("pause", "information-gain", "pause tokens", "nats"),
        ("quiet", "exact", "thoughts", "a share"),
    ],
)
def test_titles_of_training_say_what_is_drawn(tmp_path, monkeypatch, objective, reward, by, unit):
    run = make(tmp_path / "run", objective)
    config = json.loads((run / "config.json").read_text())
    config["thought"]["reward"] = reward
    (run / "config.json").write_text(json.dumps(config))
    found = seen(run, lambda f: [ax.get_title("left") for ax in f.axes], monkeypatch)["training"]
    nll, gain = f"NLL without {by}, nats a token", f"gain by {by}, nats a token"
    assert found == [nll, gain, f"mean reward, {unit}", "mean mixing weight"]


def test_the_steps_stand_below_the_last_panel_only(tmp_path, monkeypatch):
    found = seen(make(tmp_path / "run"), texts, monkeypatch)["training"]
    assert [text for text, _ in found].count("40") == 1


@pytest.mark.parametrize("steps", [2, 3, 41])
def test_a_short_run_is_drawn(tmp_path, steps):
    pytest.importorskip("matplotlib")
    assert len(draw_run(make(tmp_path / "run", steps=steps), DECILES[:1])) == 6


def test_drawing_without_matplotlib_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"found none; run pip install -e '\.\[plot\]'$"):
        draw_run(make(tmp_path / "run"), DECILES)
    assert not (tmp_path / "run" / "plots").exists()


def test_steps_are_read_with_gaps_where_nothing_finite_was_measured(tmp_path):
    steps = [{"step": 1, "nll_base": 1.5}, {"step": 2, "nll_base": None, "reward": 0}]
    write_log(tmp_path, steps)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 3, "nll_b')  # killed while writing
    found = read_steps(tmp_path)
    assert list(found) == ["step", "nll_base", "reward"]
    np.testing.assert_array_equal(found["step"], [1, 2])
    np.testing.assert_array_equal(found["nll_base"], [1.5, np.nan])
    np.testing.assert_array_equal(found["reward"], [np.nan, 0.0])


def test_a_damaged_step_is_named_and_left_out(tmp_path, capsys):
    step = b'{"step": 2, "nll_base": 1}\n'
    (tmp_path / "log.jsonl").write_bytes(b'{"torch": "2"}\n{"step"\n' + step)
    assert read_steps(tmp_path)["step"].tolist() == [2]
    assert "log.jsonl, line 2: expected a JSON object" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("log", "found"),
    [
        (None, "no step"),
        (b"", "no step"),
        (b'{"torch": "2"}\n', "no step"),
        (b"\xff\xfe\n", "no step"),
        (b'{"step": 1, "nll_base": 1}\n{"step": 2}\n', "{'step': 2}"),
        (b'{}\n{"step": null, "nll_base": 1}\n', "no step"),  # a damaged line is passed over
        (b'{}\n{"step": 1, "nll_base": "low"}\n', "{'step': 1, 'nll_base': 'low'}"),
    ],
)
def test_another_log_is_refused(tmp_path, log, found):
    if log is not None:
        (tmp_path / "log.jsonl").write_bytes(log)
    with pytest.raises(ValueError, match=r"log\.jsonl: expected the log of a run") as error:
        read_steps(tmp_path)
    assert f"found {found}" in str(error.value)
    assert str(error.value).endswith(f"is {tmp_path} a run folder that has trained?")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="expected the folder of a run, found no config.json"):
        draw_run(tmp_path, DECILES)
    assert not list(tmp_path.iterdir())


def test_the_run_itself_stands_at_its_own_length(tmp_path):
    curves = read_curves(make(tmp_path / "run"), 5)
    assert {n: r.gold[0] for n, r in curves.trained.items()} == GOLD
    assert curves.trained[5].name == OWN
    assert list(curves.trained) == list(curves.evaluated) == sorted(GOLD)
    assert {name: r.gold[0] for name, r in curves.flat.items()} == {
        "plain training": 0.132,
        "pause tokens": 0.14,
    }


def test_controls_of_before_estimates_are_read(tmp_path):
    run = make(tmp_path / "run")
    new, path = read_curves(run, 5), run / "controls.json"
    written = json.loads(path.read_text())
    for table in written["tables"].values():
        for line in table:
            for name in ("gold", "other"):
                line[name], line[f"{name}_interval"] = line[name]
    path.write_text(json.dumps(written))
    assert read_curves(run, 5) == dataclasses.replace(
        new, **{k: as_pairs(getattr(new, k)) for k in ("trained", "evaluated", "flat")}
    )


def as_pairs(rows):
    return {
        key: dataclasses.replace(r, gold=tuple(r.gold), other=tuple(r.other))
        for key, r in rows.items()
    }


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '{"tables": {}}',
        json.dumps({"tables": {TRAINED: [{"name": "n = 1"}], LENGTH: []}}),
        json.dumps({"tables": {TRAINED: [dataclasses.asdict(row("n = 1", 1.0))], LENGTH: []}}),
    ],
)
def test_other_controls_are_refused(tmp_path, text):
    (tmp_path / "controls.json").write_text(text)
    with pytest.raises(ValueError, match=r"controls\.json: expected thought lengths.*again$"):
        read_curves(tmp_path, 5)


@given(
    st.lists(st.one_of(finite, st.just(float("nan"))), min_size=1, max_size=30), st.integers(0, 9)
)
def test_smoothing_is_the_mean_of_what_is_there_around(values, half):
    for i, found in enumerate(smooth(np.array(values), half)):
        near = [v for v in values[max(0, i - half) : i + half + 1] if not np.isnan(v)]
        assert found == pytest.approx(sum(near) / len(near) if near else np.nan, nan_ok=True)


def test_ranges_are_short():
    assert [nll_range(d) for d in DECILES] == [
        *("< 0.01", "< 0.01", "0.00–0.01", "0.01–0.05", "0.05–0.18", "0.18–0.52"),
        *("0.52–1.10", "1.10–2.20", "2.20–3.90", "3.90–12.8"),
    ]
    assert nll_range(Decile(1.001, 1.002, 3, 1, 0.0, None, 1.0)) == "1.00"


def test_a_run_of_star_is_refused_and_points_to_rounds(tmp_path):
    config = Config(run=RunConfig(objective="star"), star=StarConfig(rounds=1))
    run = files.new_run(tmp_path, "star", config)
    with pytest.raises(ValueError, match=f"draw it with python evaluate.py rounds {run}$"):
        draw_run(run, [])
