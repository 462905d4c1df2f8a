"""Where the kernels are taken: `on_device` around an operator, for arrays whose module compiles them (CuPy's).

A call then checks its arguments as the operator does, launches, and neither waits nor copies anything: the operator's
own look at its result, and the detour of half precision through float32, are left out. Where the kernels cannot hold
the problem they give None, and the operator runs in its array form.
"""

from __future__ import annotations

import functools

from asap_ref.fast.kernels.finite import flag
from asap_ref.fast.kernels.launch import can_launch
from asap_ref.support.arrays import array_namespace, is_array
from asap_ref.support.contracts import inside, is_inside


def on_device(form):
    """Decorate an operator with ``form``, its kernels: the same arguments, and ``found``, where to report to."""

    def decorate(operator):
        @functools.wraps(operator)
        def dispatched(*args, **kwargs):
            q = args[0] if args else kwargs.get("q")
            if not (is_array(q) and can_launch(q)):
                return operator(*args, **kwargs)
            with q.device:  # CuPy makes and computes on the device that is current, which may be another
                if is_inside():  # the outermost operator has checked the arguments, and looks at the result
                    result = form(*args, **kwargs)
                else:
                    arguments, *_ = operator.examined(*args, **kwargs)
                    found = flag(array_namespace(q), q, operator.__name__)
                    result = inside(form, **arguments, found=found)
                return operator(*args, **kwargs) if result is None else result

        return dispatched

    return decorate
