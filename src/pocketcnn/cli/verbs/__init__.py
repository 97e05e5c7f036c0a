"""The verbs of the command line, one file each; a file is imported when its verb runs.

`VERBS` describes each verb in one line, which the overview and the verb's own help show. The help shows the line of
`EXAMPLES` too: the verb with the flags that most people need first.
"""

VERBS = {
    "shrink": "Make a trained net of yours small enough for a budget of bytes: choose how, fit, distil, store, measure before and after.",
    "compare": "Train nets by one preset, several seeds each, beside the plain net; writes a table, figures and report.html.",
    "train": "Train one net on one data set; writes a run folder with records, checkpoint and model file.",
    "distil": "Train a small net to give what a trained one gives, starting from its weights; writes a run folder as train does.",
    "search": "Search methods, stages, sizes and storage types for the most accurate nets within a budget; several workers can share it.",
    "evaluate": "Measure a trained net on the test images of a data set: accuracy and loss.",
    "classify": "Classify image files by a trained net: the likeliest classes of each image, with their probabilities.",
    "measure": "Count and time a net, by name or from a file: parameters, bytes, multiply-adds, depth, milliseconds, memory.",
    "bench": "Time every method, written out in PyTorch, compiled and by our kernels, beside the machine's limit and the plain nets.",
    "condense": "Replace layers of a net by condensed ones and write the small net to a file; the method's options are flags.",
    "sensitivity": "Condense each layer of a trained net alone, and show what that costs in outputs and saves in bytes.",
    "plan": "Show what condensing would change and save, and which layers it skips and why; changes nothing.",
    "pack": "Rewrite a model file: weights as int8 or float16, small weights set to zero, seeds hidden by a passphrase.",
    "publish": "Write a net as a repository of the Hugging Face hub, with a card made from its run's record; upload it if asked.",
    "export": "Write a net to a file that runs without this package, and check it against the net: ONNX, ExecuTorch, torch.export.",
    "models": "List the plain nets and the recipes (the papers' nets) with their parameter counts; or the trained nets in the package.",
    "data": "Load a data set and show its splits, sizes, classes, normalisation and augmentation.",
    "report": "Rebuild table.md, figures and report.html from the records in a folder of runs.",
    "reproduce": "Compare published results with ours, with a verdict on each: read the records, run what is missing, write docs/results.md.",
    "picture": "Draw what trained nets make of images: feature maps, and the inside of layers that generate or share their kernels.",
    "explore": "Write one HTML page with trained nets inside it: they run in the browser, beside their costs and a look inside.",
    "similarity": "Compare trained nets: how they see the same images (CKA), how alike a layer's filters are, accuracy by size of the ring.",
}

EXAMPLES = {
    "shrink": "pocketcnn shrink runs/train --max-bytes 100k --minutes 30",
    "compare": "pocketcnn compare --data digits --methods plain ring:size=0.1 condconv --preset demo",
    "train": "pocketcnn train --data digits --model resnet20 --method ring:size=0.1 --preset demo",
    "distil": "pocketcnn distil --teacher cifar10/resnet20 --student ring:size=0.1,scheme=windows",
    "search": "pocketcnn search --data digits --max-bytes 100k --trials 10 --preset demo",
    "evaluate": "pocketcnn evaluate --model runs/train",
    "classify": "pocketcnn classify photo.jpg --model cifar10/resnet20",
    "measure": "pocketcnn measure resnet20 --method ring:size=0.1",
    "bench": "pocketcnn bench --quick",
    "condense": "pocketcnn condense --model resnet20 --method ring --size 0.1 --output small.safetensors",
    "sensitivity": "pocketcnn sensitivity cifar10/resnet20 --method ring:size=0.1",
    "plan": "pocketcnn plan --model resnet20 --method ring --size 0.1",
    "pack": "pocketcnn pack runs/train --storage int8 --packed",
    "publish": "pocketcnn publish runs/train --output card --license apache-2.0",
    "export": "pocketcnn export cifar10/resnet20 --output resnet20.onnx",
    "models": "pocketcnn models '*ring*'",
    "data": "pocketcnn data digits",
    "report": "pocketcnn report runs/compare",
    "reproduce": "pocketcnn reproduce ring_curve",
    "picture": "pocketcnn picture cifar10/resnet20 --images 0 1 2",
    "explore": "pocketcnn explore cifar10/resnet20 --output explore.html",
    "similarity": "pocketcnn similarity cifar10/resnet20 runs/train",
}
