"""Open one session through HAProxy, note its far end in the file of argument 1, and there, too, when it is cut."""

import socket
import sys
import time

with socket.create_connection(("127.0.0.1", 5000), timeout=60) as session, open(sys.argv[1], "w", buffering=1) as notes:
    notes.write(session.recv(100).decode())
    try:
        cut = session.recv(100) == b""
    except ConnectionResetError:
        cut = True
    notes.write(f"cut {time.time():.3f}\n" if cut else "talk\n")
