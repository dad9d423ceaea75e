"""Runs the steps of this repository's Dockerfiles where there is no Docker engine: in a chroot of a fresh Debian, with
mounts, processes and network of its own. Called by scripts/dockerfiles; knows nothing of what the images serve.

    dockerfile   the text -> stages of instructions        base        FROM debian:... -> a folder, by debootstrap
    context      git ls-files less .dockerignore           room        a root file system to run commands in
    build        instructions -> an Image                  container   an Image's command: start, health, stop
    pip_conf     the host's pip settings, as a secret      host        commands, mounts and namespaces of this machine

It reads what these files use and refuses the rest: a step that is not understood must not look as if it had worked.
"""
