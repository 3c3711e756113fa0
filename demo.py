"""Find people in a photo that you drop into a page of the browser, or shoot there.

python -m utils.demo -c run1                  the page of exp/run1, for this machine alone
python -m utils.demo -c out.onnx              of an ONNX file of utils.convert
python -m utils.demo -c run1 --host 0.0.0.0   for all who reach this machine; it has no password

It needs Gradio: pip install -r requirements-extra.txt. Nothing is asked of the internet.
"""

import html
import os
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from functools import partial
from pathlib import Path

from data.coco_pose import ref
from data.coco_pose.photo import read_photo
from data.coco_pose.results import VISIBLE
from data.predictions import Results, add_picture
from test import aggregate, load, parse_scales, regroup
from utils.errors import UserError, exit_code, import_extra

LARGEST = '20mb'  # of a photo's file
SCALES = (0.05, 4)  # of the network's input; larger ones may need more memory than there is
KEPT = 3600  # seconds that Gradio's copies of photos and pictures stay on the disk


class Finder:
    """What the page calls: the network once per photo, and the grouping as often as it likes."""

    def __init__(self, func, error):
        """func: what `test.load` returns. error: of Gradio, whose message the page shows."""
        self.func, self.error = func, error
        self.joints = ref.get_joints(func.config['data'])

    def look(self, path, mode, text):
        """The photo's name, its pixels and its merged maps, which the page keeps; None for none.

        text: of own scales, where the mode is neither 'single' nor 'multi'.
        """
        if path is None:
            return None
        try:
            scales = self.func.config['test']['scales'].get(mode) or read_scales(text)
            photo = read_photo(path, upright=True)
        except UserError as error:
            line = str(error).replace(path, Path(path).name)
            raise self.error(html.escape(line), print_exception=False) from None
        return Path(path).name, photo, aggregate(photo, self.func, scales)

    def show(self, found, detection, tag):
        """What the page shows of what was found: text, and the paths of files that soon go."""
        if found is None:
            yield None, None, None, None, None
            return
        name, photo, maps = found
        people = regroup(maps, self.func, detection_val=detection, tag_val=tag)
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            with open(folder / 'predictions.json', 'wb') as stream:
                category = ref.make_category(self.joints.names, self.joints.skeleton)
                results = Results(folder, stream, category)
                with results.begin(name):
                    add_picture(results, photo, *people, self.joints, True, sure=detection)
                results.end()
            scores = ', '.join(f'{score:.2f}' for score in sorted(people[-1], reverse=True))
            drawn = results.path
            sheets = folder / 'heatmaps' / drawn.name, folder / 'tags' / drawn.name
            # Gradio takes its own copies before it comes back here.
            yield f'{len(people[-1])}: {scores}', drawn, *sheets, Path(stream.name)


def read_scales(text):
    """'2,1,0.5' as a list of scales. Raises UserError."""
    try:
        scales = parse_scales(text)
    except ValueError:
        scales = [0]
    if not all(SCALES[0] <= scale <= SCALES[1] for scale in scales):
        least, most = SCALES
        raise UserError(f'scales {text!r:.50}: expected numbers from {least} to {most}, as 2,1,0.5')
    return scales


def make_page(gr, func, title):
    """The page, a gradio.Blocks; gr: the module gradio. func: what `test.load` returns."""
    finder, settings = Finder(func, gr.Error), func.config['test']
    side = func.config['train']['input_res']
    # Without the button that would share a picture on the internet.
    picture = partial(gr.Image, buttons=['download', 'fullscreen'], interactive=False)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT, KEPT)) as page:
        found = gr.State()
        with gr.Row():
            with gr.Column():
                photo = gr.Image(label='photo', elem_id='photo')
                # The photo's path: Gradio would decode it by itself, and say less of a broken one.
                photo.preprocess = lambda payload: payload and payload.path
                mode = gr.Radio([*settings['scales'], 'own scales'], value='single', label='scales')
                text = gr.Textbox('2,1,0.5', label=f'own scales, 1 being {side} pixels')
                detection = gr.Slider(0, 1, settings['detection_val'], step=0.01,
                    label='least heatmap value of a joint', elem_id='detection')  # fmt: skip
                tag = gr.Slider(0, 5, settings['tag_val'], step=0.05,
                    label='largest distance of tags in a person', elem_id='tag')  # fmt: skip
            with gr.Column(scale=2):
                drawn = picture(label='people, with their scores', elem_id='drawn')
                people = gr.Textbox(label=f'scores, drawn from {VISIBLE}', elem_id='people')
                predictions = gr.DownloadButton('predictions.json', elem_id='predictions')
        with gr.Row():
            heatmaps, tags = (picture(label=name, elem_id=name) for name in ('heatmaps', 'tags'))
        shown = [people, drawn, heatmaps, tags, predictions]
        # What was found before is gone even if the new photo turns out to be broken.
        looks = gr.on([photo.change, mode.change, text.submit], lambda: None, None, found,
                      trigger_mode='always_last')  # fmt: skip
        looked = looks.then(finder.look, [photo, mode, text], found)
        looked.then(finder.show, [found, detection, tag], shown)
        gr.on([detection.change, tag.change], finder.show, [found, detection, tag], shown,
              trigger_mode='always_last', show_progress='hidden')  # fmt: skip
    return page


def main():
    parser = ArgumentParser(description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument('-c', '--continue_exp', dest='exp', default='pose', metavar='NAME')
    parser.add_argument('--checkpoint', choices=['checkpoint', 'best'], default='checkpoint')
    parser.add_argument('--host', default='127.0.0.1', help='the address that it listens on')
    parser.add_argument('--port', type=int, help='default: the first free one from 7860')
    parser.add_argument('--set', nargs='+', default=[], action='extend', metavar='KEY=VALUE')
    args = parser.parse_args()
    os.environ['GRADIO_ANALYTICS_ENABLED'] = 'False'  # before Gradio is imported
    gr = import_extra('gradio')
    page = make_page(gr, load(args.exp, args.checkpoint, settings=args.set), args.exp)
    _, address, _ = page.launch(
        server_name=args.host, server_port=args.port, share=False, max_file_size=LARGEST,
        theme=gr.themes.Default(font=['system-ui', 'sans-serif'], font_mono=['monospace']),
        footer_links=[], ssr_mode=False, quiet=True, prevent_thread_lock=True,
    )  # fmt: skip
    print(f'{address} is the page, until Ctrl-C', flush=True)
    page.block_thread()


if __name__ == '__main__':
    sys.exit(exit_code(main))
