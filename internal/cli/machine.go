package cli

import (
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"sublet/internal/api"
	"sublet/internal/vps"
)

// machineFlags are the flags of create and update for what a guest boots, and
// what its disks are.
type machineFlags struct {
	kernel, isolation string
	cpus              int
	swap              vps.Bytes
	disks             []string
}

func (f *machineFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.kernel, "kernel", "", "name of the kernel that it boots, see sublet kernel list, or default for the host's; at the next boot")
	fs.StringVar(&f.isolation, "isolation", "", "strict, or fast: quicker, but the guest's own users are not kept apart; at the next boot")
	numberFlag(fs, &f.cpus, "cpus", "", 1, vps.MaxCPUs, "`number` of virtual processors; more than 1 need --isolation fast; at the next boot")
	fs.Lookup("cpus").DefValue = ""
	fs.Var(&f.swap, "swap", "size of a swap file in the guest, for example 512MiB; 0 for none; at the next boot")
	fs.StringArrayVar(&f.disks, "data-disk", nil, "an extra disk as `NAME=SIZE`; may be repeated, and all that the guest has have to be named")
	fixedCompletion(cmd, "isolation", string(vps.IsolationStrict), string(vps.IsolationFast))
	for _, name := range []string{"kernel", "cpus", "swap", "data-disk"} {
		fixedCompletion(cmd, name)
	}
}

// read puts what the flags name into the request.
func (f *machineFlags) read(cmd *cobra.Command, u *api.UpdateGuest) error {
	kernel := f.kernel
	if kernel == "default" {
		kernel = ""
	}
	u.Kernel = given(cmd, "kernel", kernel)
	u.Isolation = given(cmd, "isolation", vps.Isolation(f.isolation))
	u.CPUs = given(cmd, "cpus", f.cpus)
	u.Swap = given(cmd, "swap", f.swap)
	if cmd.Flags().Changed("data-disk") {
		disks, err := parseDataDisks(f.disks)
		if err != nil {
			return err
		}
		u.Disks = &disks
	}
	return nil
}

// parseDataDisks reads whole disks; an empty text is none.
func parseDataDisks(texts []string) ([]vps.DataDisk, error) {
	out := make([]vps.DataDisk, 0, len(texts))
	for _, text := range texts {
		if text == "" {
			continue
		}
		d, err := vps.ParseDataDisk(text)
		if err != nil {
			return nil, vps.Invalid("--data-disk", "%s", vps.ErrorMessage(err))
		}
		if slices.ContainsFunc(out, func(o vps.DataDisk) bool { return o.Name == d.Name }) {
			return nil, vps.Invalid("--data-disk", "the disk %s is named twice", d.Name)
		}
		out = append(out, d)
	}
	return out, nil
}

// machineFields are the lines of a page for what was set of a guest's machine
// beside memory and disk.
func machineFields(s vps.GuestSpec) []field {
	var disks []string
	for _, d := range s.Disks {
		disks = append(disks, d.Name+" "+d.Size.String())
	}
	fields := []field{{"data disks", strings.Join(disks, ", ")}, {"kernel", s.Kernel}}
	if s.Storage != vps.StorageFile {
		fields = append(fields, field{"storage", s.Storage})
	}
	if s.Swap != 0 {
		fields = append(fields, field{"swap", s.Swap.String()})
	}
	if s.Isolation != vps.IsolationStrict {
		fields = append(fields, field{"isolation", string(s.Isolation)})
	}
	if s.BillingWeight != vps.DefaultBillingWeight {
		fields = append(fields, field{"billing weight", strconv.Itoa(s.BillingWeight)})
	}
	if s.CPUs > 1 {
		fields = append(fields, field{"processors", strconv.Itoa(s.CPUs)})
	}
	return fields
}
