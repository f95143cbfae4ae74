"""Globals that no checkpoint needs and every attack does.

Nothing here is needed for safety: the reader runs nothing, whatever a pickle
names. But a file that asks for `os.system` was made to attack whoever loads it
with another tool, and the user should hear that rather than get weights from it.
"""

from __future__ import annotations

_MODULES = frozenset(
    """
    os posix posixpath nt ntpath subprocess _posixsubprocess sys socket _socket shutil ctypes _ctypes cffi importlib
    _frozen_importlib _frozen_importlib_external imp _imp zipimport pkgutil runpy pickle _pickle cPickle marshal shelve
    webbrowser pty popen2 codeop pdb bdb cProfile pydoc doctest idlelib lib2to3 asyncio multiprocessing concurrent
    urllib urllib2 http httplib ftplib smtplib telnetlib xmlrpc requests ssl pip setuptools distutils ensurepip atexit
    fcntl mmap operator _operator functools _functools _winapi winreg msvcrt _xxsubinterpreters
    torch.hub torch.package torch.utils.cpp_extension torch.utils.model_zoo torch._inductor torch.multiprocessing
    torch.distributed.rpc numpy.f2py numpy.testing numpy.distutils
    """.split()
)
_NAMES = frozenset(
    """
    torch.load torch.save torch.compile torch.jit.load torch.serialization.load torch.serialization.save
    torch.ops.load_library torch.ops.import_module torch.classes.load_library torch.utils.data.graph_settings.exec
    numpy.load numpy.save numpy.memmap numpy.fromfile numpy.loadtxt numpy.genfromtxt numpy.savetxt
    io.open _io.open io.FileIO _io.FileIO io.open_code _io.open_code codecs.open code.InteractiveInterpreter
    code.InteractiveConsole code.interact commands.getoutput commands.getstatusoutput trace.Trace profile.run
    profile.Profile timeit.timeit timeit.Timer types.CodeType types.FunctionType types.LambdaType types.MethodType
    types.ModuleType typing.get_type_hints copyreg.pickle copyreg.constructor signal.signal signal.raise_signal
    threading.Thread
    """.split()
)
_HARMLESS_BUILTINS = frozenset(
    """
    object type bool int long float complex str unicode basestring bytes bytearray buffer list tuple dict set frozenset
    slice range xrange property classmethod staticmethod NoneType Ellipsis NotImplemented enumerate zip reversed
    abs min max sum len round sorted getattr
    """.split()
)


def is_refused(module: str, name: str) -> bool:
    """Whether the global `module.name` is one that only an attack asks for.

    >>> is_refused("posix", "system"), is_refused("builtins", "eval"), is_refused("argparse", "Namespace")
    (True, True, False)
    """
    if module in ("builtins", "__builtin__"):
        harmless = name in _HARMLESS_BUILTINS or (
            name.isidentifier() and name.endswith(("Error", "Exception", "Warning"))
        )
        return not harmless
    full = f"{module}.{name}"
    if any(prefix in _MODULES or prefix in _NAMES for prefix in _prefixes(full)):
        return True
    # Protocol 4 resolves dotted names through attributes: `torch` + `serialization.os.system`, `x.__globals__`.
    *owners, last = name.split(".")
    hops = any(part in _MODULES for part in owners)
    return hops or any(part.startswith("__") and part.endswith("__") for part in (*owners, last))


def _prefixes(dotted: str) -> list[str]:
    parts = dotted.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]
