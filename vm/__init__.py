"""`make test-zfs`: a virtual machine with a real OpenZFS, built by the scripts beside this file, and the tests in it.

It is emulated throughout (no /dev/kvm): correct, and the same everywhere, but slow.
"""
