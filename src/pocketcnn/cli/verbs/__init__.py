"""One file for each verb; a file is imported when its verb is run.

`VERBS` says of each in one line what it does: the overview and the verb's own help show it.
"""

VERBS = {
    "compare": "Train nets under one recipe, several seeds each, next to the plain net: table, figures, report.html.",
    "train": "Train one net on one data set; leaves a folder with records, checkpoint and model file.",
    "distil": "Train a small net on what a trained one gives, starting from its weights; leaves a folder as train does.",
    "search": "Search methods, sites, sizes and precisions for the most accurate nets within a budget; several workers may share it.",
    "evaluate": "Measure a trained net on the test images of a data set: accuracy and loss.",
    "classify": "Say what image files show, by a trained net: the likeliest classes of each, with their probabilities.",
    "measure": "Count and time a net, by name or from a file: stored numbers, bytes, multiply-adds, depth, ms, memory.",
    "bench": "Time every method side by side: written out, compiled, ours, against the machine's limit and the plain nets.",
    "condense": "Replace layers of a net by condensed ones and write the small net to a file; the method's options are flags.",
    "plan": "Show what condensing would change, what it passes over and why, and what it saves; changes nothing.",
    "pack": "Write a model file again, smaller or locked: int8 or float16 weights, small weights left out, a passphrase.",
    "publish": "Write a net as a repository of the Hugging Face hub, with a card made of its run's record; upload it if asked.",
    "export": "Write a net to a file that serves without this package, checked against the net: ONNX, ExecuTorch, torch.export.",
    "models": "List the plain nets and the papers' nets, with their numbers; or the trained nets that the package holds.",
    "data": "Load a data set and say what is in it: splits, sizes, classes, normalisation, augmentation.",
    "report": "Make table.md, figures and report.html again from the records in a folder of runs.",
    "reproduce": "Set published figures beside ours, with a verdict: reads the records, runs what is missing, writes docs/results.md.",
    "picture": "Draw what trained nets make of images: feature maps, and what is inside layers that make or share their kernels.",
    "similarity": "Compare how trained nets see the same images (CKA), how alike the filters of a layer are, and the rings' law of size.",
}
