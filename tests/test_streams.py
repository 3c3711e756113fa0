"""Cameras and streams: what is taken of them, what is kept, and how they end."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from data import photos
from data.photos import Clip, Stream
from data.predictions import open_window
from utils.errors import UserError


def shaded(number):
    """A picture (48, 64, 3) that tells its number, from 0 to 99, by its brightness."""
    return np.full((48, 64, 3), 40 + 2 * number, np.uint8)


def number_in(picture):
    return round((float(np.median(picture)) - 40) / 2)


@pytest.fixture
def serve():
    """serve(answer): an address of this machine, whose requests call answer(write), from 0."""
    servers = []

    def start(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header('Content-Type', 'multipart/x-mixed-replace; boundary=frame')
                self.end_headers()
                try:
                    answer(self.wfile.write)
                except OSError:  # the other side has hung up
                    pass

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f'http://me:secret@127.0.0.1:{servers[-1].server_port}/live'

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def send(write, number):
    """Writes a picture as webcams do."""
    data = cv2.imencode('.jpg', shaded(number))[1].tobytes()
    head = f'--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n'
    write(head.encode() + data + b'\r\n')


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(photos, 'TRIES', 2)
    monkeypatch.setattr(photos, 'PAUSE', 0.02)


@pytest.fixture
def find(run1, call_script, quick, monkeypatch):
    """find(source, ...): test.py with it as --images, without a screen."""
    monkeypatch.delenv('DISPLAY', raising=False)
    return lambda *args: call_script('test.py', '-c', 'run1', '--images', *args)


@pytest.fixture
def camera(monkeypatch):
    """camera(count): makes camera 0 give so many pictures, 100 a second; Ctrl-C at `interrupt`."""
    real = cv2.VideoCapture

    class Camera:
        number, left, interrupt = 0, 0, -1

        def __new__(cls, source, *args):
            return real(source, *args) if isinstance(source, str) else super().__new__(cls)

        def __init__(self, source):
            self.source = source

        def isOpened(self):
            return self.source == 0

        def get(self, key):
            return 25 if key == cv2.CAP_PROP_FPS else -1

        def read(self):
            time.sleep(0.01)
            Camera.number += 1
            if Camera.number == Camera.interrupt:
                os.kill(os.getpid(), signal.SIGINT)
            return True, shaded((Camera.number - 1) % 100) if Camera.number <= Camera.left else None

        def release(self):
            pass

    monkeypatch.setattr(cv2, 'VideoCapture', Camera)

    def start(count, interrupt=-1):
        Camera.left, Camera.interrupt = count, interrupt

    return start


def frames_of(folder):
    content = json.loads((Path(folder) / 'predictions.json').read_text())
    return [image['frame'] for image in content['images']]


def test_of_a_live_stream_the_newest_picture_is_taken(serve, quick, capsys):
    sent = []

    def answer(write):
        for number in range(60 * (not sent)):
            send(write, number)
        sent.append(1)

    stream, taken = Stream(serve(answer)), []
    assert stream.count == 0 and stream.file.endswith('-live') and 'secret' not in stream.file
    with pytest.raises(UserError, match='broke off after picture 60, and could not be opened') as e:
        for picture in stream:
            taken.append(number_in(picture))
            assert taken[-1] == len(taken) - 1 + stream.dropped
            while len(taken) == 1 and not [item for item in stream.box.queue if item[0] == 59]:
                time.sleep(0.01)
    assert taken[1:] == [59] and stream.dropped == 58 and 'secret' not in str(e.value)
    assert ': 58 pictures that came too fast' in capsys.readouterr().out


def test_a_stream_that_breaks_off_is_opened_again(serve, quick, capsys):
    requests = []

    def answer(write):
        requests.append(time.monotonic())
        for number in range(20 * (len(requests) - 1), 20 * len(requests) * (len(requests) < 4)):
            send(write, number)
            time.sleep(0.01)

    stream, numbers = Stream(serve(answer)), []
    with pytest.raises(UserError, match='broke off after picture 60, .* 2 tries'):
        for picture in stream:
            numbers.append(number_in(picture))
    assert numbers == sorted(set(numbers)) and numbers[-1] == 59
    assert len(requests) == 5 and capsys.readouterr().err.count('broke off after picture') == 3


@pytest.mark.parametrize('breaks', [0, 1])
def test_a_clip_at_an_address_loses_no_picture(find, serve, breaks):
    """Nor one twice where the connection broke on the way."""
    writer = cv2.VideoWriter('a.avi', cv2.VideoWriter_fourcc(*'MJPG'), 10, (64, 48))
    for number in range(16):
        writer.write(shaded(number))
    writer.release()
    data, requests = Path('a.avi').read_bytes(), []

    def answer(write):
        requests.append(1)
        write(data[: 2 * len(data) // 3] if len(requests) <= breaks else data)

    done = find(serve(answer), '--out', 'out')
    assert done.returncode == 0, done.stderr
    assert frames_of('out') == list(range(16))
    (drawn,) = Path('out').glob('*.mp4')
    clip = Clip(drawn)
    assert [number_in(picture[-20:]) for picture in clip] == pytest.approx(range(16), abs=2)
    assert clip.rate == 10 and 'secret' not in drawn.name + done.stderr.replace('[', '')


def test_a_camera_becomes_a_clip_that_takes_as_long(find, camera):
    """Pictures that are left out are filled in with the next."""
    camera(60)
    done = find('0', '--out', 'out')
    assert done.returncode == 1 and 'warning: camera 0 broke off after picture 60' in done.stderr
    frames = frames_of('out')
    assert frames == sorted(set(frames)) and frames[-1] == 59
    assert f'{60 - len(frames)} pictures that came too fast' in done.stdout or len(frames) == 60
    pictures = list(Clip('out/camera-0.mp4'))
    assert len(pictures) == 60
    for number, picture in enumerate(pictures):
        shown = next(frame for frame in frames if frame >= number)
        assert number_in(picture[-20:]) == pytest.approx(shown, abs=2)


def test_ctrl_c_ends_a_camera_well(find, camera):
    camera(100_000, interrupt=50)
    before = signal.getsignal(signal.SIGINT)
    done = find('0')
    assert done.returncode == 0 and not done.stderr, done
    frames = frames_of('exp/run1/out')
    assert len(list(Clip('exp/run1/out/camera-0.mp4'))) == frames[-1] + 1
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize('out', [[], ['--out', 'out']])
def test_a_window_shows_each_picture_until_q(find, camera, monkeypatch, out):
    shown = []
    monkeypatch.setattr(
        'data.predictions.open_window',
        lambda title: lambda picture: shown.append(picture) or len(shown) < 3,
    )
    camera(100_000)
    done = find('0', *out)
    assert done.returncode == 0 and len(shown) == 3, done.stderr
    assert shown[0].shape == (480, 640, 3)
    assert (len(frames_of('out')) == 3) if out else not Path('exp/run1/out').exists()


def test_what_cannot_be_opened(find, camera):
    for source in ('1', 'http://me:secret@127.0.0.1:9/live'):
        done = find(source, '--out', 'out')
        assert done.returncode == 1 and 'cannot be opened: expected the number' in done.stderr
        assert 'me:secret' not in done.stderr.split('warning:')[1]
    assert 'a camera or an address alone' in find('0', 'a.jpg').stderr


def test_a_file_may_be_called_as_a_camera(work):
    assert photos.is_stream('0') and photos.is_stream('rtsp://here') and not photos.is_stream('a')
    Path('0').touch()
    assert not photos.is_stream('0')


@pytest.mark.skipif(sys.platform != 'linux', reason='needs a system whose screen has a name')
def test_without_a_screen_there_is_no_window(monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    assert open_window('a') is None


@pytest.mark.skipif(not shutil.which('Xvfb'), reason='needs Xvfb')
def test_a_window_on_a_screen(root):
    """A virtual one, whose number Xvfb chooses."""
    read, write = os.pipe()
    screen = subprocess.Popen(['Xvfb', '-noreset', '-displayfd', str(write)], pass_fds=[write],
                              stderr=subprocess.DEVNULL)  # fmt: skip
    try:
        os.close(write)
        display = ':' + os.read(read, 20).decode().strip()
        code = """
import cv2, numpy as np
from data.predictions import open_window
show = open_window('people')
print(show and show(np.zeros((99, 99, 3), np.uint8)), cv2.currentUIFramework())
"""
        done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True,
                              text=True, env=os.environ | {'DISPLAY': display})  # fmt: skip
    finally:
        screen.kill()
        screen.wait()
        os.close(read)
    answer, *framework = done.stdout.split()
    if not framework:
        pytest.skip('needs an OpenCV with windows')
    assert answer == 'True', done.stderr
