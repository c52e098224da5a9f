"""What the tests of bfctl share: finding and running the program, and a coordinator made of a few lines of Python.

FakeCoordinator speaks JSON-RPC over a Unix socket and answers from a table of functions, so that a test decides
exactly what bfctl gets to see, disconnections included.
"""
import json
import os
import pathlib
import socket
import subprocess
import threading

from buildlib import ROOT, bin_dir


def bfctl(*args, address=None, stdin=None, timeout=60, env=None, cwd=None):
    """Runs bfctl to its end; returns the CompletedProcess with text output."""
    head = [str(bin_dir() / "bfctl")] + (["--address", address] if address else [])
    return subprocess.run(head + [str(a) for a in args], input=stdin, capture_output=True, text=True, timeout=timeout,
                          env={**os.environ, **(env or {})}, cwd=cwd)


def bfctl_start(*args, address=None, **kwargs):
    """Starts bfctl; the caller waits for it."""
    head = [str(bin_dir() / "bfctl")] + (["--address", address] if address else [])
    return subprocess.Popen(head + [str(a) for a in args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            **kwargs)


class RpcError(Exception):
    def __init__(self, code, message, data=None):
        super().__init__(message)
        self.code, self.message, self.data = code, message, data


class FakeCoordinator:
    """methods: name -> function(connection, params) -> result; it may raise RpcError, and may call
    connection.notify() or connection.close_after_reply()."""

    def __init__(self, directory, methods):
        self.path = str(pathlib.Path(directory) / "fake.sock")
        self.address = "unix:" + self.path
        self.methods = methods
        self.calls = []  # (method, params) in order of arrival
        self.changed = threading.Condition()
        self.listener = None
        self.threads = []

    def __enter__(self):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(self.path)
        self.listener.listen(16)
        self.threads.append(threading.Thread(target=self._accept, daemon=True))
        self.threads[0].start()
        return self

    def __exit__(self, *exc):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        os.unlink(self.path)

    def params_of(self, method):
        return [p for m, p in self.calls if m == method]

    def wait_for_call(self, method, count=1, timeout=20):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.params_of(method)) >= count, timeout), \
                f"{method} was not called {count} times: {self.calls}"

    def _accept(self):
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=_Connection(self, sock).serve, daemon=True)
            thread.start()


class _Connection:
    def __init__(self, coordinator, sock):
        self.coordinator, self.sock = coordinator, sock
        self.after = []  # notifications that follow the reply
        self.closing = False

    def send(self, message):
        self.sock.sendall(json.dumps(message).encode() + b"\n")

    def notify(self, method, params):
        """Sent after the reply to the call that is being answered."""
        self.after.append({"jsonrpc": "2.0", "method": method, "params": params})

    def close_after_reply(self):
        self.closing = True

    def serve(self):
        with self.sock, self.sock.makefile("rb") as lines:
            try:
                for line in lines:
                    self.answer(json.loads(line))
                    if self.closing:
                        return
            except OSError:
                return

    def answer(self, request):
        c = self.coordinator
        reply = {"jsonrpc": "2.0", "id": request.get("id")}
        try:
            method = c.methods.get(request["method"])
            if not method:
                raise RpcError(-32601, "no such method")
            reply["result"] = method(self, request.get("params") or {})
        except RpcError as e:
            reply["error"] = {"code": e.code, "message": e.message}
            if e.data is not None:
                reply["error"]["data"] = e.data
        with c.changed:
            c.calls.append((request["method"], request.get("params") or {}))
            c.changed.notify_all()
        self.send(reply)
        for message in self.after:
            self.send(message)
        self.after = []
