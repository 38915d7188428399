"""Draw predicted rates of recorded neurons while frames arrive from a camera or video file.

    python examples/live_rates.py runs/neurons video.mp4 --out rates.gif

Frames are converted to grey and to the session's size and frame rate.
"""

import argparse
from collections import deque
from pathlib import Path

import av
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from ssl_vivit.files import replaced_file
from ssl_vivit.neural import load_neural_model
from ssl_vivit.neural.cores.frame_rates import FrameRates
from ssl_vivit.preprocessing import LUMA

SECONDS, NEURONS, PICTURES = 4, 4, 6  # seconds and neurons drawn; pictures per second


def grey_frames(source, height, width):
    """Return the frame rate of a camera or file, and an iterator of its frames in grey."""
    video = av.open(source, format="v4l2" if source.startswith("/dev/") else None)
    decoded = (frame.reformat(width, height, "rgb24") for frame in video.decode(video=0))
    grey = (frame.to_ndarray() @ np.array(LUMA) for frame in decoded)
    return float(video.streams.video[0].average_rate), grey


def picture(figure, frame, times, rates, units):
    """Draw the newest frame, and the predicted rates of the last seconds."""
    figure.clear()
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.4))
    left.imshow(frame, cmap="gray", vmin=0, vmax=255)
    left.set(xticks=[], yticks=[], title="stimulus")
    right.plot(times, rates, label=[f"unit {unit}" for unit in units])
    right.set(xlabel="time (s)", ylabel="responses per frame")
    right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=NEURONS, frameon=False)
    plt.pause(0.001)
    return Image.fromarray(np.array(figure.canvas.buffer_rgba()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="a run or an exported model of neurons")
    parser.add_argument("source", help="a video file, or a camera such as /dev/video0")
    parser.add_argument("--session", help="session of the neurons, if the model has several")
    parser.add_argument("--units", type=int, nargs="+", help="unit ids; the first four are drawn")
    parser.add_argument("--context", type=float, default=2.0, help="past seconds seen (default: 2)")
    parser.add_argument("--out", type=Path, help=".gif or .png (last picture); default: window")
    args = parser.parse_args()
    model = load_neural_model(args.model)
    stream = model.stream(args.session, context=args.context, units=args.units)
    fps, frames = grey_frames(args.source, *stream.facts.frame_size)
    rate, units = stream.facts.frames_per_second, stream.unit_ids[:NEURONS]
    shown, figure = FrameRates(fps, rate), plt.figure(figsize=(9, 3), layout="constrained")
    rates, pictures = deque(maxlen=round(SECONDS * rate)), []
    for number, frame in enumerate(frames):
        count = shown.resampled(number + 1)
        rates.extend(stream.step(frame).tolist() for _ in range(shown.resampled(number), count))
        if number % round(fps / PICTURES) == 0:
            times = np.arange(count - len(rates), count) / rate
            drawn = picture(figure, frame, times, [each[:NEURONS] for each in rates], units)
            pictures += [] if args.out is None else [drawn]
    if pictures:
        first, *later = pictures[-1:] if args.out.suffix == ".png" else pictures
        with replaced_file(args.out) as part:
            first.save(part, args.out.suffix[1:], append_images=later, save_all=True, duration=167)


if __name__ == "__main__":
    main()
