import json, pytest, torch, pickle, shutil, io
from task import pose
from utils.run import Run

@pytest.fixture
def run1(make_coco, configure, work):
    coco = make_coco(people=(1,2), valid=(1, 1))
    config = configure(*coco.settings)
    network = pose.make_network(config).network
    run = Run('run1'); run.create(config | {'run': {'task': 'pose'}})
    run.save({'state_dict': network.state_dict()})
    return coco, work/'exp'/'run1', network

def show(name, done):
    print(f'{name!r:60} rc={done.returncode} err={done.stderr.strip()[:230]!r}')

def attempt(call, name, *a):
    try:
        show(name, call(*a))
    except BaseException as e:
        print(f'{name!r:60} RAISED {type(e).__name__}: {str(e)[:200]}')

def test_sets(make_coco, work, call_script, tiny, run1):
    coco = run1[0]
    for s in ['model.stem=[4,8]','model.stem=[]','train.decay_iters=[5]','augmentation.scale=[1.0]','augmentation.scale=[1.25,0.75]','train.precision=fp8','test.precision=fp8','model.nstack=0','model.inp_dim=0','model.increase=-9','train.num_workers=-5','test.num_workers=-5','test.batchsize=0','train.sigma=0.0','train.learning_rate=-1','train.eval_epochs=-1','train.seed=-1','train.save_minutes=-1','train.clip_norm=nan','train.input_res=128','train.input_res=100','train.output_res=25','test.scales={}','test.scales.single=[]','test.scales.single=[0]','test.scales.single=1','network=models.posenet.Pose','network=foo','data_provider=nothing','run.task=pose','train=3','augmentation.mirror=2','augmentation.saturation=[0.5,1.5','test.max_num_people=0','train.max_num_people=0', 'train.warmup_iters=-1','train.loss_weights.push=x','data.images=/nowhere','data.valid_images=/nowhere', 'model.bn=yes','=3','train.batchsize','train.batchsize==4', 'model.stem=[4,8,8.5]','train.batchsize=True','train.batchsize=2_0', 'train.batchsize=None', 'train.batchsize=1e3']:
        shutil.rmtree(work/'exp'/'new', ignore_errors=True)
        attempt(call_script, 'train '+s, 'train.py','-e','new','--set',*coco.settings,*tiny,'train.train_iters=1',s)
    for s in ['test.precision=fp8','test.num_workers=-5','test.batchsize=0','test.scales.single=[]','test.scales.single=[0]','test.max_num_people=0','model.stem=[4]','test.refine=no','test.detection_val=high']:
        attempt(call_script, 'test '+s, 'test.py','-c','run1','--set',s)
    for a in (['--scales','0'],['--scales','a,b'],['--limit','-1'],['--limit','99'],['--vis','-3'], ['--checkpoint','best']):
        attempt(call_script, a, 'test.py','-c','run1',*a)

def test_annotations(run1, call_script, work, tiny):
    coco, folder, net = run1
    good = json.loads(coco.annotations.read_text())
    def variant(f):
        c = json.loads(json.dumps(good)); r = f(c); return json.dumps(c if r is None else r)
    cases = {
     'empty': '', 'text': 'hello', 'binary': None, 'list': '[]', 'number': '3', 'null':'null','dict':'{}',
     'images null': variant(lambda c: c.update(images=None)),
     'annotations null': variant(lambda c: c.update(annotations=None)),
     'annotations dict': variant(lambda c: c.update(annotations={})),
     'ann strings': variant(lambda c: c.update(annotations=['a'])),
     'images strings': variant(lambda c: c.update(images=['a'])),
     'images empty': variant(lambda c: c.update(images=[])),
     'annotations empty': variant(lambda c: c.update(annotations=[])),
     'no keypoints': variant(lambda c: [a.pop('keypoints') for a in c['annotations']] and None),
     'short': variant(lambda c: c['annotations'][0].update(keypoints=[1,2,3])),
     'keypoints null': variant(lambda c: c['annotations'][0].update(keypoints=None)),
     'keypoints strings': variant(lambda c: c['annotations'][0].update(keypoints=['a']*51)),
     'no image_id': variant(lambda c: c['annotations'][0].pop('image_id') and None),
     'no id in image': variant(lambda c: c['images'][0].pop('id') and None),
     'no file_name': variant(lambda c: c['images'][0].pop('file_name') and None),
     'no size': variant(lambda c: [i.pop('height') for i in c['images']] and None),
     'no category': variant(lambda c: [a.pop('category_id') for a in c['annotations']] and None),
     'no ann id': variant(lambda c: [a.pop('id') for a in c['annotations']] and None),
     'unknown image': variant(lambda c: c['annotations'][0].update(image_id=5555555)),
     'no bbox': variant(lambda c: [a.pop('bbox') for a in c['annotations']] and None),
     'crowd no seg no bbox': variant(lambda c: [c['annotations'][0].update(iscrowd=1), c['annotations'][0].pop('bbox'), c['annotations'][0].pop('segmentation')] and None),
     'crowd bad rle': variant(lambda c: c['annotations'][0].update(iscrowd=1, segmentation={'size':[3,3],'counts':[2,7]})),
     'crowd bad string': variant(lambda c: c['annotations'][0].update(iscrowd=1, segmentation={'size':[80,100],'counts':'abc'})),
     'crowd no counts': variant(lambda c: c['annotations'][0].update(iscrowd=1, segmentation={'size':[80,100]})),
     'path up': variant(lambda c: c['images'][0].update(file_name='../../x.jpg')),
     'big ids': variant(lambda c: [c['annotations'][0].update(id=2**70)] and None),
     'float id': variant(lambda c: [i.update(id=float(i['id'])) for i in c['images']] and None),
     'string ids': variant(lambda c: [i.update(id=str(i['id'])) for i in c['images']] and None),
     'nan': variant(lambda c: c['annotations'][0].update(area=float('nan'))),
     'duplicate image': variant(lambda c: c['images'].append(dict(c['images'][0]))),
    }
    for name, text in cases.items():
        if text is None: coco.annotations.write_bytes(b'\xff\xfe\x00\x81'*9)
        else: coco.annotations.write_text(text)
        shutil.rmtree(work/'exp'/'new', ignore_errors=True)
        attempt(call_script, 'train '+name, 'train.py','-e','new','--set',*coco.settings,*tiny,'train.train_iters=1','train.num_workers=0')
        attempt(call_script, 'test '+name, 'test.py','-c','run1', '--vis', '0')

class Evil:
    def __reduce__(self):
        return (open, ('/tmp/repro/evil','w'))

def test_checkpoints(run1, call_script, work, tiny, golden):
    coco, folder, net = run1
    path = folder/'checkpoint.pth.tar'
    good = path.read_bytes()
    legacy = golden('checkpoint.pth.tar').read_bytes()
    sd = net.state_dict()
    def saved(obj, **k):
        b = io.BytesIO(); torch.save(obj, b, **k); return b.getvalue()
    import random
    random.seed(0)
    cases = {'empty': b'', 'text': b'hello world', 'half': good[:len(good)//2], 'q': good[:100], 'minus1': good[:-1], 'legacyhalf': legacy[:len(legacy)//2], 'legacy100': legacy[:100], 'legacy minus': legacy[:-5], 'random': random.randbytes(1000), 'gzip': b'\x1f\x8b'+random.randbytes(100), 'zip': b'PK\x03\x04'+random.randbytes(400), 'zeros': bytes(5000),
      'flip': good[:3000]+bytes(200)+good[3200:], 'pickle': pickle.dumps({'a':1}), 'evil': pickle.dumps(Evil()), 'evil2': saved({'state_dict': sd, 'x': Evil()}), 'evillegacy': saved({'state_dict': sd, 'x': Evil()}, _use_new_zipfile_serialization=False),
      'list': saved([1]), 'bare': saved(sd), 'none': saved({'state_dict': None}), 'nontensor': saved({'state_dict': {k: 3 for k in sd}}), 'intkeys': saved({'state_dict': {i: v for i,v in enumerate(sd.values())}}), 'emptysd': saved({'state_dict': {}}), 'samples only': saved({'state_dict': sd, 'samples': 3}), 'samples bad opt': saved({'state_dict': sd, 'samples': 3, 'step':3,'epoch':0,'optimizer':{}, 'totals':torch.zeros(3,dtype=torch.float64), 'random':{'cpu':torch.get_rng_state(),'cuda':[]}}), 'nan weights': saved({'state_dict': {k: torch.full_like(v, float('nan')) for k, v in sd.items()}}), 'half weights': saved({'state_dict': {k: v.half() for k, v in sd.items()}}), 'pickle2': b'\x80\x02}q\x00.', 'tar': None}
    for i in range(30):
        b = bytearray(good if i%2 else legacy[:300000]); 
        for _ in range(3): b[random.randrange(min(len(b), 3000))] = random.randrange(256)
        cases[f'mut{i}'] = bytes(b)
    for name, data in cases.items():
        if data is None:
            path.unlink(); path.mkdir()
        else: path.write_bytes(data)
        attempt(call_script, 'test '+name, 'test.py','-c','run1','--vis','0')
        attempt(call_script, 'train '+name, 'train.py','-c','run1')
    import os
    print('EVIL', os.path.exists('/tmp/repro/evil'))

def test_configs(run1, call_script, work, tiny):
    coco, folder, net = run1
    for name, text in {'empty':'', 'list':'[]','{}':'{}','norun':'{"train":{}}','run bad':'{"run":{"task":"nope"}}','run list':'{"run":[]}','typed':'{"run":{"task":"pose"},"train":3}', 'bad value':'{"run":{"task":"pose"},"model":{"nstack":"x"}}'}.items():
        (folder/'config.json').write_text(text)
        attempt(call_script, 'test '+name, 'test.py','-c','run1')
        attempt(call_script, 'train '+name, 'train.py','-c','run1')
