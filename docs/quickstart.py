"""From a convolution to drawn detections in half a minute on a CPU: python docs/quickstart.py

It trains on 64 images of handwritten digits for 12 iterations: enough to see every step, and too
little to detect well; `make demo` trains the same config for about 4 minutes, to an AP of about 0.84.
"""

import subprocess
import sys
from pathlib import Path

import cv2
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmengine.runner import Runner

import mmscconv
from mmscconv.configuration import move_data_root
from mmscconv.storage.checkpoints import load_safely

OUT = Path(sys.argv[1] if len(sys.argv) > 1 else 'work_dirs/quickstart')
TOOLS = Path(__file__).resolve().parents[1] / 'tools'


def main() -> None:
    # 1. A convolution, with nn.Conv2d's arguments.
    conv = mmscconv.SCConv(64, 128, kernel_size=3, stride=2, padding=1)
    plain = torch.nn.Conv2d(64, 128, kernel_size=3, stride=2, padding=1)
    print('output:', tuple(conv(torch.randn(1, 64, 32, 32)).shape))
    print('weights of SCConv and Conv2d:', *(sum(p.numel() for p in m.parameters()) for m in (conv, plain)))

    # 2. A shipped config by its name, and a data set in COCO format for it.
    subprocess.run(
        [sys.executable, TOOLS / 'make_digits.py', '--out', OUT / 'digits', '--train', '64', '--val', '4'], check=True
    )
    cfg = mmscconv.get_config('retinanet_scconv_r18_digits')
    move_data_root(cfg, str(OUT / 'digits'))

    # 3. Training. Everything is a setting of the config, and mmengine's Runner does the rest.
    cfg.work_dir = str(OUT / 'run')
    cfg.train_cfg.update(max_epochs=3, val_interval=3)
    cfg.default_hooks.checkpoint.interval = 3
    cfg.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.log_level = 'WARNING'
    Runner.from_cfg(cfg).train()
    checkpoint = str(OUT / 'run' / 'epoch_3.pth')

    load_safely()  # for mmdet's interfaces, too: a checkpoint of someone else cannot run code

    # 4. Detections: of an image, a folder or an array, drawn into OUT/drawn/vis.
    inferencer = DetInferencer(cfg, checkpoint, device='cpu', show_progress=False)
    images = OUT / 'digits' / 'val'
    results = inferencer(str(images), out_dir=str(OUT / 'drawn'), pred_score_thr=0.3)
    print('images in the folder:', len(results['predictions']))
    array = cv2.imread(str(min(images.iterdir())))
    best = inferencer(array)['predictions'][0]
    print('best of an array:', best['labels'][0], [round(x) for x in best['bboxes'][0]], round(best['scores'][0], 3))

    # 5. The same without drawing, for your own code.
    model = init_detector(cfg, checkpoint, device='cpu')
    print('boxes of the array:', len(inference_detector(model, array).pred_instances.bboxes))
    print('drawn:', *sorted(map(str, (OUT / 'drawn' / 'vis').iterdir())))


if __name__ == '__main__':
    main()
