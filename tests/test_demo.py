"""The page in the browser, seen through a Chromium without a window."""

import base64
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest

import demo
from test import load, regroup
from utils.errors import UserError

PATIENCE = 60  # seconds for what the page is to show
# Prints whom the server asks for anything; then is the page's own program.
WATCHED = """
import runpy, sys

def watch(event, args):
    if event in ('socket.connect', 'socket.getaddrinfo'):
        print('ASKED', event, args[1] if event == 'socket.connect' else args[0], flush=True)

sys.addaudithook(watch)
runpy.run_module('utils.demo', run_name='__main__', alter_sys=True)
"""


class Browser:
    """A Chromium, spoken to by its DevTools protocol."""

    def __init__(self, program, folder):
        connect = pytest.importorskip('websockets.sync.client').connect
        command = [program, '--headless=new', '--no-sandbox', '--remote-debugging-port=0']
        command += ['--disable-gpu', f'--user-data-dir={folder}', '--window-size=1400,1800']
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        file = folder / 'DevToolsActivePort'
        wait(lambda: file.is_file() and len(file.read_text().splitlines()) == 2)
        port = file.read_text().splitlines()[0]
        pages = json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/json'))
        address = next(p['webSocketDebuggerUrl'] for p in pages if p['type'] == 'page')
        self.stack = contextlib.ExitStack()
        self.socket = self.stack.enter_context(connect(address, max_size=None))
        self.number, self.requests = 0, []

    def call(self, method, **params):
        """The result of a command; what the page asks for meanwhile goes to `requests`."""
        self.number += 1
        self.socket.send(json.dumps({'id': self.number, 'method': method, 'params': params}))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            if answer.get('method') == 'Network.requestWillBeSent':
                self.requests.append(answer['params']['request']['url'])
            if answer.get('id') == self.number:
                return answer['result']

    def run(self, code):
        """The value of an expression of JavaScript in the page."""
        result = self.call('Runtime.evaluate', expression=code, awaitPromise=True,
                           returnByValue=True)  # fmt: skip
        return result['result'].get('value')

    def choose_file(self, selector, path):
        root = self.call('DOM.getDocument')['root']['nodeId']
        node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
        self.call('DOM.setFileInputFiles', nodeId=node, files=[str(path)])

    def close(self):
        self.stack.close()
        self.process.terminate()
        self.process.wait()


def wait(condition):
    """The first true value of a function, which it is called for again and again."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, 'it does not come'
        time.sleep(0.2)
    return value


@pytest.fixture
def page(root, work, tmp_path):
    """The Browser, at the page of the included network; and what its server printed, a file."""
    for package in ('gradio', 'websockets'):
        pytest.importorskip(package, reason='needs requirements-extra.txt')
    program = shutil.which('chromium') or shutil.which('chromium-browser')
    if program is None:
        pytest.skip('needs chromium')
    log = tmp_path / 'log'
    places = {'PYTHONPATH': str(root), 'GRADIO_TEMP_DIR': str(tmp_path / 'gradio')}
    command = [sys.executable, '-c', WATCHED, '-c', 'small', '--set', 'test.precision=fp32']
    with open(log, 'w') as stream:
        server = subprocess.Popen(
            command, env=os.environ | places, cwd=work, stdout=stream, stderr=stream
        )
    browser = None
    try:
        address = wait(lambda: re.search(r'http://127.0.0.1:\d+', log.read_text()))[0]
        browser = Browser(program, tmp_path / 'chromium')
        browser.call('Network.enable')
        browser.call('Page.enable')
        browser.call('Page.navigate', url=address)
        wait(lambda: browser.run("!!document.querySelector('#photo input[type=file]')"))
        browser.address = address
        yield browser, log
    finally:
        if browser:
            browser.close()
        server.terminate()
        server.wait()


def picture(browser, name):
    """The picture (H, W, 3) that the page shows, or None."""
    code = f"document.querySelector('#{name} img')?.src"
    source = browser.run(code)
    if not source:
        return None
    data = urllib.request.urlopen(source).read()
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


def people(browser):
    """What the page says of people: '3: 0.61, 0.55, 0.40', or ''."""
    return browser.run("document.querySelector('#people textarea, #people input').value")


def says(browser, words):
    """Whether a note of the page has these words."""
    return words in browser.run("document.querySelector('.toast-wrap')?.innerText || ''")


def test_a_photo_goes_in_and_people_come_out(page, root, tmp_path):
    browser, log = page
    photo = root / 'photos.jpg'
    browser.choose_file('#photo input[type=file]', photo)
    before = wait(lambda: people(browser))
    count = int(before.split(':')[0])
    assert count >= 3
    drawn = picture(browser, 'drawn')
    plain = cv2.resize(cv2.imread(str(photo), cv2.IMREAD_COLOR_RGB), drawn.shape[1::-1])
    assert (np.abs(drawn.astype(int) - plain).max(2) > 100).mean() > 0.003  # lines
    heatmaps, tags = picture(browser, 'heatmaps'), picture(browser, 'tags')
    assert heatmaps is not None and tags is not None and heatmaps.shape != tags.shape
    shot = browser.call('Page.captureScreenshot', captureBeyondViewport=True)['data']
    Path(os.environ.get('SCREENSHOT', tmp_path / 'page.png')).write_bytes(base64.b64decode(shot))

    browser.call('Browser.setDownloadBehavior', behavior='allow', downloadPath=str(tmp_path))
    browser.run("document.querySelector('#predictions button, button#predictions').click()")
    file = tmp_path / 'predictions.json'
    wait(file.is_file)
    found = json.loads(file.read_text())
    assert [image['file_name'] for image in found['images']] == ['photos.jpg']
    assert len(found['annotations']) == count and len(found['categories'][0]['keypoints']) == 17

    browser.run("""
        (() => {
            const slider = document.querySelector('#detection input[type=range]')
            slider.value = 0.6
            for (const name of ['input', 'change', 'pointerup', 'mouseup'])
                slider.dispatchEvent(new Event(name, {bubbles: true}))
        })()""")
    after = wait(lambda: people(browser) != before and people(browser))
    assert int(after.split(':')[0]) < count
    wait(lambda: not np.array_equal(picture(browser, 'drawn'), drawn))

    # A broken photo is answered by the line that test.py prints, a large one by its size.
    broken, large = tmp_path / 'broken.jpg', tmp_path / 'large.jpg'
    broken.write_bytes(photo.read_bytes()[:3000])
    large.write_bytes(photo.read_bytes() + bytes(20 * 2**20))
    for file, words in (
        (broken, 'photo broken.jpg is cut short'),
        (large, 'maximum allowed size of 20'),
    ):
        browser.run("document.querySelector('#photo button[aria-label=Clear]')?.click()")
        wait(lambda: browser.run("!!document.querySelector('#photo input[type=file]')"))
        browser.choose_file('#photo input[type=file]', file)
        wait(partial(says, browser, words))
    wait(lambda: people(browser) == '')

    # No one else is asked for anything: neither by the page nor by its server; and nobody else may.
    known = (browser.address, 'data:', 'blob:', 'chrome:')
    assert [url for url in browser.requests if not url.startswith(known)] == []
    asked = re.findall('^ASKED .*', log.read_text(), re.M)
    assert asked and [a for a in asked if not re.search(r'127\.0\.0\.1|localhost', a)] == []
    with pytest.raises(OSError):  # which it would take if it listened on all addresses
        urllib.request.urlopen(browser.address.replace('127.0.0.1', '127.0.0.2'))


def test_thresholds_do_without_the_network(root, tmp_path):
    func = load('small', settings=['test.precision=fp32'])
    finder = demo.Finder(func, RuntimeError)
    found = finder.look(str(root / 'photos.jpg'), 'own scales', '1.5')
    func.network, texts = None, set()
    for detection, tag in ((0.25, 1.0), (0.5, 1.0), (0.25, 0.1)):
        maps, _, _, scores = regroup(found[2], func, detection_val=detection, tag_val=tag)
        shown = finder.show(found, detection, tag)
        text, *pictures, predictions = next(shown)
        texts.add(text)
        assert int(text.split(':')[0]) == len(scores) > 0
        entries = json.loads(predictions.read_text())['annotations']
        np.testing.assert_allclose([e['score'] for e in entries], np.sort(scores)[::-1], atol=1e-5)
        assert all(cv2.imread(str(path)) is not None for path in pictures)
        assert list(shown) == [] and not predictions.exists()
    assert len(texts) == 3  # each threshold counts
    assert finder.look(None, 'single', '') is None


def test_own_scales():
    assert demo.read_scales('2,1,0.5') == [2, 1, 0.5]
    for text in ('', 'a', '1,nan', '100', '0', '-1'):
        with pytest.raises(UserError, match='expected numbers from 0.05 to 4'):
            demo.read_scales(text)


def test_without_gradio(root, work, call_script, monkeypatch):
    monkeypatch.setitem(sys.modules, 'gradio', None)
    done = call_script('utils/demo.py', '-c', 'small')
    assert done.returncode == 2 and 'pip install -r requirements-extra.txt' in done.stderr
