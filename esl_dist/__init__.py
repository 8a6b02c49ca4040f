"""ESL-Dist: entropy-guided self-supervised domain adaptation for semantic segmentation, on one process or many.

Imports run one way, from the top of this list to what stands below it:

    launch, shards, cli    thin: start a program
    programs               read a configuration, call one function
    doctor                 what a machine has, and whether a program can run on it
    training, inference    adapt a network; use one: scores, pseudo-labels; neither knows the other
    prediction             a network's predictions of pictures, shared by the ranks, and what they count
    runs                   what a run leaves on disk: checkpoints, snapshots, records
    ranks, reporting       who computes and sums, and knows the ground alone; what people read
    adaptation             the science: methods, losses, entropy statistics, pseudo-labels
    data, models           samples in, logits out; neither knows the other
    config, …              the ground: settings, files, messages, the machine
"""
