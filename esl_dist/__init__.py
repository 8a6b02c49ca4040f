"""ESL-Dist: entropy-guided self-supervised domain adaptation for semantic segmentation, on one process or many.

Imports run one way, from the top of this list to what stands below it:

    launch, shards   the programs: read a configuration, call one function
    engine           what knows ranks: training loop, evaluation, pseudo-label job, checkpoints
    reporting        what people read: TensorBoard, tables
    adaptation       the method: losses, adaptation methods, entropy statistics, pseudo-labels
    data, models     samples in, logits out; neither knows the other
    config, environment, errors, files, checked, machine   settings, launchers' variables, the exceptions for users,
                                                           whole-file writing, values from files, what a job may use
"""
