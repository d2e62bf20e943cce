"""The records of `ccm/src/report/events.rs`, made by TensorBoard's own classes. With a folder of event files, lists what
TensorBoard reads from it.

    pip install tensorboard
    python tests/references/events.py [FOLDER]
"""

import io
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.summary.writer.record_writer import RecordWriter


def record(event):
    file = io.BytesIO()
    RecordWriter(file).write(event.SerializeToString())
    return file.getvalue().hex()


if len(sys.argv) == 1:
    Event, Value = event_pb2.Event, summary_pb2.Summary.Value
    print("VERSION", record(Event(wall_time=1.5, step=0, file_version="brain.Event:2")))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    print("START", record(Event(wall_time=1.5, step=300, session_log=start)))
    image = summary_pb2.Summary.Image(height=3, width=2, colorspace=3, encoded_image_string=b"png")
    values = [Value(tag="teacher/loss", simple_value=0.25), Value(tag="samples", image=image)]
    print("VALUES", record(Event(wall_time=2.5, step=300, summary=summary_pb2.Summary(value=values))))
else:
    events = EventAccumulator(sys.argv[1])
    events.Reload()
    for tag in events.Tags()["scalars"]:
        print(tag, [(point.step, round(point.value, 4)) for point in events.Scalars(tag)])
    for tag in events.Tags()["images"]:
        print(tag, [(image.step, image.width, image.height) for image in events.Images(tag)])
