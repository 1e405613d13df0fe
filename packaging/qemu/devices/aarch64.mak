# The machine. It brings what it cannot be built without: the interrupt controllers, PL011 (the guest's console), PL031,
# the PCI Express host bridge, ACPI with its hot-plug.
CONFIG_ARM_VIRT=y
# Nothing of a virt machine's; but 7.2's translation of ARM does not link without it.
CONFIG_ARM_V7M=y
# Each takes one device at run time.
CONFIG_PCIE_PORT=y

CONFIG_VIRTIO_PCI=y
# The agent's channel, where the host has no vsock; and where it has.
CONFIG_VIRTIO_SERIAL=y
CONFIG_VHOST_VSOCK=y
# Files, disks, networks.
CONFIG_VHOST_USER_FS=y
CONFIG_VIRTIO_BLK=y
CONFIG_VIRTIO_SCSI=y
CONFIG_VIRTIO_NET=y
# Memory that comes, goes and is given back.
CONFIG_VIRTIO_MEM=y
CONFIG_VIRTIO_BALLOON=y
# Entropy.
CONFIG_VIRTIO_RNG=y
