// Command mksubvol makes a subvolume in a mounted Btrfs: mksubvol FOLDER NAME.
package main

import (
	"fmt"
	"os"
	"syscall"
	"unsafe"
)

// create is BTRFS_IOC_SUBVOL_CREATE, _IOW(0x94, 14, struct btrfs_ioctl_vol_args).
const create = 1<<30 | 4096<<16 | 0x94<<8 | 14

func main() {
	dir, err := os.Open(os.Args[1])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	var args struct {
		fd   int64
		name [4088]byte
	}
	copy(args.name[:], os.Args[2])
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, dir.Fd(), create, uintptr(unsafe.Pointer(&args))); errno != 0 {
		fmt.Println(errno)
		os.Exit(1)
	}
}
