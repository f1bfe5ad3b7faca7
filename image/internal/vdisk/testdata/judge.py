# Reads disks with libyal's readers and prints their size, their SHA-256 as a
# guest sees them, and how many bytes could not be read.
import hashlib, sys
import pyqcow, pyvhdi, pyvmdk

def vmdk(path):
    handle = pyvmdk.handle()
    handle.open(path)
    handle.open_extent_data_files()
    return handle

def qcow(path):
    f = pyqcow.file()
    f.open(path)
    return f

def vhd(path):
    f = pyvhdi.file()
    f.open(path)
    return f

readers = {"vmdk": vmdk, "qcow2": qcow, "vhd": vhd, "vhdx": vhd}
for path in sys.argv[1:]:
    disk = readers[path.rsplit(".", 1)[1]](path)
    size = disk.get_media_size()
    h = hashlib.sha256()
    left = size
    while left:
        data = disk.read_buffer(min(left, 1 << 20))
        if not data:
            break
        h.update(data)
        left -= len(data)
    print(path, size, h.hexdigest(), left)
