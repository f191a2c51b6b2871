package guestinit

import "testing"

// What is mended is whatever lies on a tenant's disk: nothing may be mended
// twice, and no text may stop a boot.
func FuzzMend(f *testing.F) {
	for _, d := range distributions() {
		for _, text := range d {
			f.Add(text)
		}
	}
	f.Add("/swapfile none swap sw 0 0\n/dev/ubdd /x ext4 defaults 0 2\nUUID=x /y xfs\n")
	f.Add(busyboxInittab)
	f.Fuzz(func(t *testing.T, text string) {
		p := umlPlace()
		for name, mend := range map[string]func(string) string{
			"fstab":          func(s string) string { return mendFstab(s, p, true) },
			"fstab, unheard": func(s string) string { return mendFstab(s, p, false) },
			"inittab": func(s string) string {
				return mendInittab(s, inittabOptions{console: "tty0", getty: "/sbin/getty 38400 tty0"})
			},
			"busybox' inittab": func(s string) string {
				return mendInittab(s, inittabOptions{console: "tty0", busybox: true, getty: "/sbin/getty tty0"})
			},
			"interfaces": func(s string) string { return quietInterfaces(s, p) },
		} {
			once := mend(text)
			if twice := mend(once); twice != once {
				t.Errorf("%s: %q becomes %q, and then %q", name, text, once, twice)
			}
		}
	})
}
