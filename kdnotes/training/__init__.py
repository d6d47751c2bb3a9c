"""Training: the loop, the teacher's stored answers, the cache of networks, the pool of workers."""
