"""A real file system of a few MiB that tests can fill up."""
import os
import subprocess


class SmallDisk:
    def __init__(self, path, kib):
        self.path, self.filler = path, path / "filler"
        path.mkdir(parents=True)
        run = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k,mode=0755", "none", path],
                             capture_output=True, text=True)
        self.mounted = run.returncode == 0
        self.why = run.stderr.strip()

    def fill(self):
        """Until not one byte more goes in."""
        fd = os.open(self.filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            for size in (65536, 4096, 1):
                try:
                    while os.write(fd, b"x" * size):
                        pass
                except OSError:
                    pass
        finally:
            os.close(fd)

    def free(self):
        self.filler.unlink()

    def unmount(self):
        if self.mounted:
            subprocess.run(["umount", "-l", self.path], check=True)
