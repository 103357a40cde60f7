"""Programs that make data sets: digits, minival, CIFAR, ImageNet-5K, shards, synthetic shapes."""
