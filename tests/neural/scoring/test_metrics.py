"""Scores of neurons, compared with published implementations and slow loops."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural.scoring.metrics import (
    PoissonSums,
    bits_per_spike,
    single_trial_correlation,
)
from ssl_vivit.neural.scoring.repeats import Repeats, RepeatScores
from ssl_vivit.neural.scoring.scores import LEAST_EXPLAINABLE

PARITY = Path(__file__).parents[1] / "parity"
NLB = np.load(PARITY / "nlb_bits_per_spike.npz")
MEASURES = np.load(PARITY / "neuralpredictors_measures.npz")
CASES = sorted({name.split("|")[0] for name in NLB.files} - {"per_neuron_true_rates"})


def of_repeats(repeats, predictions=None):
    """Return scores from (repeats, bins, neurons) of each movie; missing predictions are zeros."""
    predictions = predictions or [torch.zeros_like(each) for each in repeats]
    return RepeatScores([Repeats.of(*pair) for pair in zip(repeats, predictions, strict=True)])


def tensors(numbers, *names):
    return [torch.from_numpy(numbers[name].copy()) for name in names]


def measured(prefix):
    """Return the responses to each image, (repeats, 1, neurons)."""
    names = sorted(name for name in MEASURES.files if name.startswith(f"{prefix}_"))
    return [image[:, None] for image in tensors(MEASURES, *names)]


@pytest.mark.parametrize("case", CASES)
def test_bits_per_spike_are_the_benchmarks(case):
    rates, spikes = tensors(NLB, f"{case}|rates", f"{case}|spikes")
    before = rates.clone(), spikes.clone()
    # Theirs computes in the precision that it is given.
    limit = 1e-6 if case == "float32" else 1e-9
    assert bits_per_spike(rates, spikes) == pytest.approx(
        float(NLB[f"{case}|bits_per_spike"]), abs=limit
    )
    sums, counts = PoissonSums.of(rates, spikes), spikes.double().nan_to_num()
    total = ((sums.loss() * sums.known).sum() + torch.lgamma(counts + 1).sum()).item()
    assert total == pytest.approx(float(NLB[f"{case}|nll"]), rel=limit)
    for given, kept in zip((rates, spikes), before, strict=True):
        torch.testing.assert_close(given, kept, rtol=0, atol=0, equal_nan=True)


def test_arrays_are_accepted_as_tensors():
    names = ("noisy_rates|rates", "noisy_rates|spikes")
    rates, spikes = (NLB[name] for name in names)
    null = spikes.mean((0, 1))
    pairs = [
        (bits_per_spike(rates, spikes), bits_per_spike(*tensors(NLB, *names))),
        (bits_per_spike(rates, spikes, null_rates=null), bits_per_spike(rates, spikes)),
        (
            single_trial_correlation(rates, spikes),
            single_trial_correlation(*tensors(NLB, *names)),
        ),
    ]
    for ours, expected in pairs:
        assert torch.as_tensor(ours).equal(torch.as_tensor(expected))


def test_there_are_as_many_cases_as_the_benchmark_has():
    assert len(CASES) == 9


def test_bits_per_spike_of_each_neuron_are_the_benchmarks():
    rates, spikes = tensors(NLB, "true_rates|rates", "true_rates|spikes")
    (expected,) = tensors(NLB, "per_neuron_true_rates|bits_per_spike")
    torch.testing.assert_close(
        PoissonSums.of(rates, spikes).bits_of_neurons(), expected, rtol=0, atol=1e-9
    )


def test_a_silent_neuron_has_no_bits_per_spike_and_the_others_keep_theirs():
    rates, spikes = tensors(NLB, "silent_neuron|rates", "silent_neuron|spikes")
    silent = spikes.flatten(0, -2).sum(0) == 0
    assert silent.sum() == 1
    bits = PoissonSums.of(rates, spikes).bits_of_neurons()
    assert torch.equal(bits.isnan(), silent)
    alone = PoissonSums.of(rates[..., ~silent], spikes[..., ~silent]).bits_of_neurons()
    assert torch.equal(bits[~silent], alone)
    assert math.isnan(bits_per_spike(rates[..., silent], spikes[..., silent]))


def test_another_null_model_is_a_slow_sum():
    rates, spikes = tensors(NLB, "nan_spikes|rates", "nan_spikes|spikes")
    null = torch.linspace(0.2, 0.9, rates.shape[-1], dtype=torch.float64)
    gain, count = 0.0, 0.0
    for trial in range(len(rates)):
        for time in range(rates.shape[1]):
            for neuron in range(rates.shape[2]):
                rate, spike = rates[trial, time, neuron].item(), spikes[trial, time, neuron].item()
                if math.isnan(spike):
                    continue
                constant = null[neuron].item()
                gain += constant - spike * math.log(constant) - rate + spike * math.log(rate)
                count += spike
    expected = gain / count / math.log(2)
    assert bits_per_spike(rates, spikes, null_rates=null) == pytest.approx(expected, abs=1e-12)


def test_the_true_rates_of_constant_neurons_gain_nothing_over_training_means():
    spikes = torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]], dtype=torch.float64)
    null = torch.tensor([0.7, 0.0])
    assert bits_per_spike(null.expand(3, 2), spikes, null_rates=null) == pytest.approx(0, abs=1e-6)


def test_the_poisson_loss_is_neuralpredictors():
    rates, responses = tensors(MEASURES, "poisson_output", "poisson_target")
    loss = PoissonSums.of(rates, responses).loss()
    (expected,) = tensors(MEASURES, "PoissonLoss_per_neuron")
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-9)
    assert loss.mean().item() == pytest.approx(float(MEASURES["PoissonLoss"]), abs=1e-9)


def test_correlations_are_neuralpredictors():
    first, second = tensors(MEASURES, "corr_y1", "corr_y2")
    (expected,) = tensors(MEASURES, "corr_axis0")
    # They add 1e-8 to each deviation, 1e-12 to each variance.
    found = single_trial_correlation(first, second)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    rates, responses = tensors(MEASURES, "poisson_output", "poisson_target")
    expected = torch.from_numpy(MEASURES["Corr"][0])
    found = single_trial_correlation(rates, responses)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_correlation_leaves_unknown_responses_out():
    rates, responses = tensors(NLB, "nan_spikes|rates", "nan_spikes|spikes")
    found = single_trial_correlation(rates, responses)
    for neuron in range(rates.shape[-1]):
        known = ~responses[..., neuron].isnan()
        pair = np.stack((rates[..., neuron][known].numpy(), responses[..., neuron][known].numpy()))
        assert found[neuron].item() == pytest.approx(np.corrcoef(pair)[0, 1], abs=1e-12)


def test_constants_have_a_correlation_of_zero_or_nan():
    torch.manual_seed(0)
    responses = torch.rand(50, 3, dtype=torch.float64)
    rates = torch.rand(50, 3, dtype=torch.float64)
    rates[:, 0] = 0.1
    responses[:, 1] = 0.3
    found = single_trial_correlation(rates, responses)
    assert found[0] == 0
    assert found[1].isnan()
    assert found[2] != 0


def test_the_oracle_is_neuralpredictors():
    (expected,) = tensors(MEASURES, "oracle_jackknife")
    found = of_repeats(measured("repeats")).oracle()
    # Theirs adds 1e-8 to each deviation.
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-8)


def test_explained_variance_is_neuralpredictors():
    # Their function of this name gives what is explained of the explainable variance.
    (expected,) = tensors(MEASURES, "fev")
    found = of_repeats(measured("repeats"), measured("pred")).explained()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    repeats = measured("repeats")
    total = torch.cat(repeats).var(0)[0]
    noise = torch.stack([movie.var(0) for movie in repeats]).mean(0)[0]
    torch.testing.assert_close(
        of_repeats(repeats).explainable_variance(), (total - noise) / total, rtol=0, atol=1e-12
    )


def movies(repeats=(5, 3), bins=(30, 20), neurons=4, shift=0.0):
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    responses, predictions = [], []
    for number, length in zip(repeats, bins, strict=True):
        signal = random(1, length, neurons)
        responses.append(signal + 0.8 * random(number, length, neurons) + shift)
        predictions.append(signal + 0.5 * random(number, length, neurons))
    return responses, predictions


def assert_equal_scores(first, second):
    for name in ("oracle", "explainable_variance", "explained", "correlation_to_average"):
        torch.testing.assert_close(getattr(first, name)(), getattr(second, name)())


def test_bins_of_movies_are_stimuli_like_images():
    responses, predictions = movies()
    images = [image for movie in responses for image in movie.split(1, dim=1)]
    predicted = [image for movie in predictions for image in movie.split(1, dim=1)]
    of_movies, of_images = of_repeats(responses, predictions), of_repeats(images, predicted)
    assert_equal_scores(of_movies, of_images)


def test_correlation_to_average_is_numpys():
    responses, predictions = movies()
    found = of_repeats(responses, predictions).correlation_to_average()
    mean = np.concatenate([movie.mean(0).numpy() for movie in responses])
    predicted = np.concatenate([movie.mean(0).numpy() for movie in predictions])
    for neuron in range(4):
        expected = np.corrcoef(mean[:, neuron], predicted[:, neuron])[0, 1]
        assert found[neuron].item() == pytest.approx(expected, abs=1e-12)


def test_cc_norm_is_that_of_the_papers_equations():
    responses, predictions = movies(repeats=(6,), bins=(40,))
    constant = predictions[0].mean(0, keepdim=True).expand(6, -1, -1)
    found = of_repeats(responses, [constant]).normalised_correlation()
    for neuron in range(4):
        trials = responses[0][..., neuron].numpy()
        prediction = constant[0, :, neuron].numpy()
        count = len(trials)
        # Eq. 1 (signal power), 5 (CC_abs), 7 (CC_max), 8 (CC_norm).
        power = (trials.sum(0).var() - trials.var(1).sum()) / (count * (count - 1))
        mean = trials.mean(0)
        covariance = ((prediction - prediction.mean()) * (mean - mean.mean())).mean()
        absolute = covariance / math.sqrt(prediction.var() * mean.var())
        normalised = covariance / math.sqrt(prediction.var() * power)
        assert found.absolute[neuron].item() == pytest.approx(absolute, abs=1e-12)
        assert found.normalised[neuron].item() == pytest.approx(normalised, abs=1e-12)
        assert found.maximum[neuron].item() == pytest.approx(absolute / normalised, abs=1e-12)


def mean_over_pairs(product, repeats):
    """Return the mean of a product over all ordered pairs of different repeats."""
    pairs = list(itertools.permutations(range(repeats), 2))
    return sum(product(one, other) for one, other in pairs) / len(pairs)


def test_predictions_that_differ_between_repeats_are_scored_by_pairs_of_repeats():
    responses, predictions = movies(repeats=(5,), bins=(40,))
    found = of_repeats(responses, predictions)
    for neuron in range(4):
        y, p = (part[0][..., neuron].numpy() for part in (responses, predictions))
        residual = y - p

        def covariance(first, second):
            return mean_over_pairs(lambda i, j: np.cov(first[i], second[j], ddof=0)[0, 1], 5)

        normalised = covariance(y, p) / math.sqrt(covariance(p, p) * covariance(y, y))
        assert found.normalised_correlation().normalised[neuron].item() == pytest.approx(
            normalised, abs=1e-12
        )
        unexplained = mean_over_pairs(lambda i, j: (residual[i] * residual[j]).mean(), 5)  # noqa: B023
        explainable = y.var(ddof=1) - y.var(0, ddof=1).mean()
        assert found.explained()[neuron].item() == pytest.approx(
            1 - unexplained / explainable, abs=1e-12
        )


def simulated(gain, repeats, bins=400, animals=60, neurons=10):
    """Simulate neurons of animals; neurons of one animal share a gain, which differs between repeats.

    Returns:
        Rates and counts (repeats, bins, neurons), and the expectation of the rates over the gain
        (1, bins, neurons), which is what the stimulus alone tells.
    """
    generator = torch.Generator().manual_seed(repeats)

    def smooth(count, width):
        noise = torch.randn(count, 1, bins, generator=generator, dtype=torch.float64)
        kernel = torch.hann_window(width, dtype=torch.float64)[None, None]
        kernel = kernel / kernel.norm()
        ones = torch.ones(1, 1, bins, dtype=torch.float64)
        variance = F.conv1d(ones, kernel.square(), padding="same")
        return F.conv1d(noise, kernel, padding="same")[:, 0], variance[0, 0]

    stimulus, _ = smooth(animals * neurons, 9)
    behaviour, variance = smooth(repeats * animals, 61)
    behaviour = behaviour.unflatten(0, (repeats, animals)).repeat_interleave(neurons, 1).mT
    strength = 0.5 + 0.3 * torch.rand(animals * neurons, generator=generator, dtype=torch.float64)
    # Such that the mean gain is 1.
    log_gain = strength * gain * behaviour
    log_gain = log_gain - (strength * gain).square() * variance[:, None] / 2
    expected = 0.5 * torch.exp(1.2 * strength * stimulus.T)[None]
    rates = expected * log_gain.exp()
    return rates, torch.poisson(rates, generator), expected


@pytest.mark.parametrize("repeats", [2, 5])
@pytest.mark.parametrize("gain", [0.0, 0.8])
def test_explained_variance_of_the_true_rates_is_at_most_one_in_expectation(gain, repeats):
    rates, counts, expected = simulated(gain, repeats)
    mean = rates.mean((0, 1))
    models = {
        "true": rates,
        "stimulus": expected.expand_as(rates),
        "half": mean + 0.5 * (rates - mean),
        "double": mean + 2 * (rates - mean),
        "constant": counts.mean((0, 1)).expand_as(rates),
    }
    scores = {name: of_repeats([counts], [model]) for name, model in models.items()}
    able = scores["true"].explainable_variance() >= LEAST_EXPLAINABLE
    assert able.sum() > 200

    def mean_and_error(values):
        kept = values[able]
        return kept.mean().item(), kept.std().item() / math.sqrt(len(kept))

    feve = {name: mean_and_error(each.explained()) for name, each in scores.items()}
    norm = {
        name: mean_and_error(each.normalised_correlation().normalised)
        for name, each in scores.items()
    }
    for found in (feve, norm):
        value, error = found["true"]
        assert 0.9 < value < 1 + 3 * error
        # Behaviour is no part of the signal, so that its prediction gains and costs nothing.
        assert found["stimulus"][0] == pytest.approx(value, abs=0.05)
    for name in ("half", "double"):
        assert feve[name][0] < 0.8
        # Correlation does not depend on the scale.
        assert norm[name] == pytest.approx(norm["true"], abs=1e-9)
    assert feve["constant"][0] == pytest.approx(0, abs=0.02)
    assert norm["constant"][0] == 0


def test_cc_norm_of_the_true_signal_is_one_on_average_and_of_noise_none():
    generator = torch.Generator().manual_seed(0)
    signal = torch.randn(1, 4000, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(4, 4000, 3, generator=generator, dtype=torch.float64)
    found = of_repeats([signal + 2 * noise], [signal.expand(4, -1, -1)]).normalised_correlation()
    torch.testing.assert_close(found.normalised, torch.ones(3).double(), rtol=0, atol=0.05)
    assert found.absolute.max() < 0.8
    opposed = torch.cat((signal, -signal))
    assert (
        of_repeats([opposed], [signal.expand(2, -1, -1)])
        .normalised_correlation()
        .normalised.isnan()
        .all()
    )


def test_cc_norm_pools_movies_and_leaves_uneven_ones_out():
    responses, predictions = movies()
    responses[1][0, 3, 2] = math.nan
    found, first = (
        of_repeats(responses, predictions).normalised_correlation(),
        of_repeats(responses[:1], predictions[:1]).normalised_correlation(),
    )
    assert found.normalised[2].item() == pytest.approx(first.normalised[2].item(), abs=1e-12)
    assert found.normalised[1].item() != pytest.approx(first.normalised[1].item(), abs=1e-3)
    # The end that no repeat knows changes nothing.
    padded = torch.cat((responses[0], torch.full_like(responses[0][:, :7], math.nan)), 1)
    longer = torch.cat((predictions[0], predictions[0][:, :7]), 1)
    torch.testing.assert_close(
        of_repeats([padded], [longer]).normalised_correlation(), first, rtol=0, atol=1e-12
    )


def test_a_bin_that_is_known_once_has_no_part_in_scores_of_repeats():
    responses, predictions = movies(repeats=(4, 4), bins=(30, 20))
    cut = [movie.clone() for movie in responses]
    cut[1][1:, 10:] = math.nan
    shorter = [responses[0], responses[1][:, :10]]
    predicted = [predictions[0], predictions[1][:, :10]]
    assert_equal_scores(of_repeats(cut, predictions), of_repeats(shorter, predicted))


def test_scores_of_repeats_keep_their_digits_far_from_zero():
    near, predictions = movies()
    far, _ = movies(shift=1e4)
    there, here = of_repeats(far, predictions), of_repeats(near, predictions)
    torch.testing.assert_close(there.oracle(), here.oracle(), rtol=0, atol=1e-9)
    torch.testing.assert_close(
        there.normalised_correlation().normalised,
        here.normalised_correlation().normalised,
        rtol=0,
        atol=1e-9,
    )


def test_without_repeats_there_are_no_scores_of_repeats():
    responses, predictions = movies(repeats=(1, 1))
    scores = of_repeats(responses, predictions)
    assert scores.oracle().isnan().all()
    assert scores.explained().isnan().all()
    assert scores.correlation_to_average().isnan().all()
    assert scores.normalised_correlation().normalised.isnan().all()


@pytest.mark.parametrize("bad", [-0.1, math.nan])
def test_rates_that_are_none_are_refused_where_responses_are_known(bad):
    rates, spikes = torch.full((4, 2), 0.5), torch.ones(4, 2)
    rates[1, 1] = bad
    with pytest.raises(NeuralModelError, match="must not be negative or NaN"):
        bits_per_spike(rates, spikes)
    spikes[1, 1] = math.nan
    assert math.isfinite(bits_per_spike(rates, spikes))


def test_rates_of_other_neurons_are_refused():
    with pytest.raises(NeuralModelError, match="both shapes must be equal"):
        bits_per_spike(torch.ones(4, 2), torch.ones(4, 3))
