"""Streamed scores do not depend on the split over batches and processes."""

import json
import math

import pytest
import torch

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.scoring.metrics import (
    PoissonSums,
    bits_per_spike,
    single_trial_correlation,
)
from ssl_vivit.neural.scoring.repeats import Repeats, RepeatScores
from ssl_vivit.neural.scoring.scores import NeuralScores

NEURONS, TRIALS, FRAMES = 5, 12, 8
# Which movie each trial shows: one is shown once.
MOVIES = [0, 1, 0, 2, 1, 0, 3, 2, 1, 0, 2, 2]


def fact(name="a", neurons=NEURONS, kind="spikes", held_out=()):
    return SessionFacts(
        name=name,
        unit_ids=tuple(range(10, 10 + neurons)),
        frames_per_second=30.0,
        kind=kind,
        frame_size=(4, 6),
        video_mean=0.5,
        video_std=0.2,
        behaviour_channels=(),
        behaviour_mean=(),
        behaviour_std=(),
        pupil_mean=None,
        pupil_std=None,
        mean_response=tuple(0.3 + 0.1 * index for index in range(neurons)),
        coordinates=None,
        split={"train": (0,)},
        held_out_units=held_out,
    )


def recorded(neurons=NEURONS, seed=0, silent=1):
    """Return rates and counts, with a silent neuron, unknown responses and a shorter movie."""
    generator = torch.Generator().manual_seed(seed)
    signal = torch.rand(4, FRAMES, neurons, generator=generator, dtype=torch.float64) * 3
    rates = signal[MOVIES]
    responses = torch.poisson(rates, generator)
    responses[..., silent] = 0
    responses[4, 2, 0] = math.nan
    responses[:, 6:, 3] = math.nan
    responses[[i for i, movie in enumerate(MOVIES) if movie == 1], 5:] = math.nan
    noise = torch.rand(rates.shape, generator=generator, dtype=torch.float64)
    return (rates * (0.5 + noise)), responses


def streamed(rates, responses, pieces, session="a", **facts):
    scores = NeuralScores([fact(session, **facts)])
    for piece in pieces:
        movies = [MOVIES[index] for index in piece]
        scores.update(session, rates[piece], responses[piece], movies)
    return scores


def scores_of_repeats(rates, responses):
    trials = [[i for i, m in enumerate(MOVIES) if m == movie] for movie in (0, 1, 2)]
    return RepeatScores([Repeats.of(responses[chosen], rates[chosen]) for chosen in trials])


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        other = second[name]
        torch.testing.assert_close(value, other, rtol=1e-11, atol=1e-11, equal_nan=True)


def test_scores_of_neurons_are_those_of_everything_at_once():
    rates, responses = recorded()
    found = streamed(rates, responses, [[3, 0, 1], [2], [7, 6, 5, 4], [8, 9, 10, 11]]).neurons("a")
    null = torch.tensor(fact().mean_response, dtype=torch.float64)
    sums, of_repeats = PoissonSums.of(rates, responses), scores_of_repeats(rates, responses)
    normalised = of_repeats.normalised_correlation()
    expected = {
        "poisson": sums.loss(),
        "correlation": single_trial_correlation(rates, responses),
        "bps": sums.bits_of_neurons(),
        "bps_train_null": sums.bits_of_neurons(null),
        "correlation_to_average": of_repeats.correlation_to_average(),
        "oracle": of_repeats.oracle(),
        "fev": of_repeats.explainable_variance(),
        "feve": of_repeats.explained(),
        "cc_abs": normalised.absolute,
        "cc_max": normalised.maximum,
        "cc_norm": normalised.normalised,
    }
    assert_same(found, expected)


def test_any_split_gives_the_same():
    rates, responses = recorded()
    whole = streamed(rates, responses, [list(range(TRIALS))])
    order = torch.randperm(TRIALS, generator=torch.Generator().manual_seed(3)).tolist()
    singly = streamed(rates, responses, [[index] for index in order])
    assert_same(singly.neurons("a"), whole.neurons("a"))
    assert singly.compute() == pytest.approx(whole.compute(), rel=1e-11)


def test_processes_together_have_the_scores_of_one():
    rates, responses = recorded()
    whole = streamed(rates, responses, [list(range(TRIALS))])
    shares = [
        streamed(rates, responses, [list(range(rank, TRIALS, 3))] if rank < 3 else [])
        for rank in range(4)
    ]
    # All processes take the same steps, so the values of one step can be noted in turn.
    said = [[] for _ in shares]
    everything = []

    def first_pass(rank):
        def gather(value):
            said[rank].append(json.loads(json.dumps(value)))
            step = len(said[rank]) - 1
            return everything[step] if step < len(everything) else [value] * len(shares)

        return gather

    # Every pass settles one more step of the exchange.
    while True:
        for heard in said:
            heard.clear()
        merged = [share.over_processes(first_pass(rank)) for rank, share in enumerate(shares)]
        if len(everything) == len(said[0]):
            break
        step = len(everything)
        everything.append([heard[step] for heard in said])
    for scores in merged:
        assert_same(scores.neurons("a"), whole.neurons("a"))
        assert scores.compute() == merged[0].compute()
    # What a process had seen itself is still only that.
    alone = streamed(rates, responses, [list(range(0, TRIALS, 3))])
    assert_same(shares[0].neurons("a"), alone.neurons("a"))


def test_scores_by_name():
    rates, responses = recorded()
    other_rates, other_responses = recorded(neurons=4, seed=1, silent=0)
    scores = NeuralScores([fact(), fact("b", neurons=4), fact("c", kind="calcium")])
    scores.update("a", rates, responses, torch.tensor(MOVIES))
    scores.update("b", other_rates, other_responses)
    scores.update("c", rates, responses)
    found = scores.compute()
    assert found["bps_a"] == pytest.approx(bits_per_spike(rates, responses), abs=1e-12)
    assert found["bps_b"] == pytest.approx(bits_per_spike(other_rates, other_responses), abs=1e-12)
    assert found["bps_mean"] == pytest.approx((found["bps_a"] + found["bps_b"]) / 2)
    null = torch.tensor(fact().mean_response, dtype=torch.float64)
    assert found["bps_train_null_a"] == pytest.approx(
        bits_per_spike(rates, responses, null_rates=null), abs=1e-12
    )
    assert found["bps_units_a"] == pytest.approx(
        PoissonSums.of(rates, responses).bits_of_neurons().nanmean().item(), abs=1e-12
    )
    assert found["correlation_c"] == pytest.approx(found["correlation_a"])
    assert "bps_c" not in found
    assert found["silent_a"] == found["silent_b"] == 1
    assert "oracle_b" not in found
    of_repeats = scores_of_repeats(rates, responses)
    able = of_repeats.explainable_variance() >= 0.15
    assert found["explainable_a"] == able.sum()
    assert 0 < able.sum() < NEURONS
    expected = of_repeats.explained()[able].mean().item()
    assert found["feve_a"] == pytest.approx(expected)
    heard = torch.tensor([True, False, True, True, True])
    losses = PoissonSums.of(rates, responses).loss()
    assert found["poisson_a"] == pytest.approx(losses[heard].mean().item())
    # How many neurons each mean is over: one of session a is silent.
    counted = scores.counted()
    assert counted["feve_a"] == counted["cc_norm_a"] == able.sum()
    assert (counted["correlation_a"], counted["bps_units_a"], counted["bps_a"]) == (
        NEURONS - 1, NEURONS - 1, NEURONS,
    )  # fmt: skip
    assert counted["bps_mean"] == NEURONS + 4
    assert {name for name in found if not name.startswith(("silent", "explainable"))} <= {*counted}
    assert all(math.isfinite(value) for value in found.values())


def test_shares_of_what_is_explainable_leave_out_neurons_of_noise():
    rates, responses = recorded(neurons=40)
    found = streamed(rates, responses, [list(range(TRIALS))], neurons=40).compute()
    of_repeats = scores_of_repeats(rates, responses)
    able = of_repeats.explainable_variance() >= 0.15
    for name, values in (
        ("feve", of_repeats.explained()),
        ("cc_norm", of_repeats.normalised_correlation().normalised),
    ):
        assert values[~able].isfinite().any()
        assert found[f"{name}_a"] == pytest.approx(values[able].nanmean().item())


def test_neurons_that_were_held_out_have_scores_of_their_own():
    rates, responses = recorded()
    scores = streamed(rates, responses, [list(range(TRIALS))], held_out=(10, 13))
    trained, held_out = scores.compute(), scores.compute("held_out")
    assert trained["bps_a"] == pytest.approx(
        bits_per_spike(rates[..., [1, 2, 4]], responses[..., [1, 2, 4]])
    )
    assert held_out["bps_a"] == pytest.approx(
        bits_per_spike(rates[..., [0, 3]], responses[..., [0, 3]])
    )
    assert (trained["silent_a"], held_out["silent_a"]) == (1, 0)
    assert streamed(rates, responses, [[0]]).compute("held_out") == {}


def test_first_frames_can_be_left_out():
    rates, responses = recorded()
    scores = NeuralScores([fact()], drop_first=3)
    scores.update("a", rates, responses, MOVIES)
    later = streamed(rates[:, 3:], responses[:, 3:], [list(range(TRIALS))])
    assert_same(scores.neurons("a"), later.neurons("a"))


def test_nothing_seen_has_no_scores():
    assert NeuralScores([fact()]).compute() == {}


def test_resampled_scores_are_those_of_movies_scored_several_times():
    rates, responses = recorded()
    scores = streamed(rates, responses, [list(range(TRIALS))], held_out=(10,))
    assert scores.movies("a") == ["0", "1", "2", "3"]
    counts = torch.tensor([[1, 1, 1, 1], [2, 0, 1, 1], [0, 0, 3, 1]], dtype=torch.float64)
    of_neurons = scores.neurons("a", counts)
    for draw, row in enumerate(counts.int().tolist()):
        again = NeuralScores([fact(held_out=(10,))])
        for copy in range(3):
            for movie, times in enumerate(row):
                chosen = [i for i, shown in enumerate(MOVIES) if shown == movie]
                if copy < times:
                    names = [f"{movie} copy {copy}"] * len(chosen)
                    again.update("a", rates[chosen], responses[chosen], names)
        assert_same({name: values[draw] for name, values in of_neurons.items()}, again.neurons("a"))
    # All movies once: the scores themselves, neurons chosen alike.
    for units in ("trained", "held_out"):
        means = scores.resampled({"a": counts}, units)
        found = {name: values[0] for name, values in means.items() if math.isfinite(values[0])}
        numbers = {"silent_a", "explainable_a"}
        expected = {k: v for k, v in scores.compute(units).items() if k not in numbers}
        assert found == pytest.approx(expected, rel=1e-11)
    sums = PoissonSums.of(*(values[[0, 2, 5, 9] * 2] for values in (rates, responses)))
    one = [i for i, movie in enumerate(MOVIES) if movie in (2, 3)]
    sums = sums + PoissonSums.of(rates[one], responses[one])
    trained = sums[torch.tensor([1, 2, 3, 4])]
    assert scores.resampled({"a": counts})["bps_a"][1] == pytest.approx(trained.bits_per_spike())


def test_a_resample_without_responses_of_a_neuron_scores_no_rounding():
    generator = torch.Generator().manual_seed(0)
    rates = (
        torch.rand(2, 1, 31, 50, generator=generator).double().expand(2, 2, 31, 50).flatten(0, 1)
    )
    responses = torch.poisson(rates, generator)
    responses[:2] = 0
    scores = NeuralScores([fact(neurons=50)])
    scores.update("a", rates, responses, [0, 0, 1, 1])
    counts = torch.tensor([[2, 0], [1, 1]], dtype=torch.float64)
    of_neurons = scores.neurons("a", counts)
    for name in ("fev", "oracle", "correlation_to_average", "correlation", "cc_norm"):
        assert of_neurons[name][0].isnan().all(), name
        assert of_neurons[name][1].isfinite().any(), name
    resampled = scores.resampled({"a": counts})
    for name in ("feve", "oracle", "correlation_to_average"):
        assert math.isnan(resampled[f"{name}_a"][0]), name


@pytest.mark.parametrize(
    ("session", "neurons", "movies", "said"),
    [
        ("z", NEURONS, None, "session 'z' is unknown; scores are for a"),
        ("a", 4, None, "has 5 neurons; rates have shape"),
        ("a", NEURONS, [1], "movies has 1 names for 2 trials"),
    ],
)
def test_what_does_not_fit_is_named(session, neurons, movies, said):
    values = torch.ones(2, FRAMES, neurons)
    with pytest.raises(NeuralModelError, match=said):
        NeuralScores([fact()]).update(session, values, values, movies)
