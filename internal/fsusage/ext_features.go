package fsusage

import "strconv"

// extFeatureNames are the features by their bit, as e2fsprogs' lib/e2p/feature.c
// names them, for compat, incompat and ro_compat.
var extFeatureNames = [3]map[int]string{
	{
		0: "dir_prealloc", 1: "imagic_inodes", 2: "has_journal", 3: "ext_attr", 4: "resize_inode", 5: "dir_index", 6: "lazy_bg",
		7: "snapshot_bitmap", 9: "sparse_super2", 10: "fast_commit", 11: "stable_inodes", 12: "orphan_file",
	},
	{
		0: "compression", 1: "filetype", 2: "needs_recovery", 3: "journal_dev", 4: "meta_bg", 6: "extent", 7: "64bit", 8: "mmp",
		9: "flex_bg", 10: "ea_inode", 12: "dirdata", 13: "metadata_csum_seed", 14: "large_dir", 15: "inline_data", 16: "encrypt", 17: "casefold",
	},
	{
		0: "sparse_super", 1: "large_file", 3: "huge_file", 4: "uninit_bg", 5: "dir_nlink", 6: "extra_isize", 7: "snapshot", 8: "quota",
		9: "bigalloc", 10: "metadata_csum", 11: "replica", 12: "read-only", 13: "project", 14: "shared_blocks", 15: "verity", 16: "orphan_present",
	},
}

// features names the features in dumpe2fs's order; those without a name here
// are FEATURE_ and the set's letter and bit, as dumpe2fs writes them.
func (s *extSuper) features() []string {
	names := []string{}
	for set, mask := range []uint32{s.compat, s.incompat, s.ro} {
		for bit := range 32 {
			if mask&(1<<bit) == 0 {
				continue
			}
			name := extFeatureNames[set][bit]
			if name == "" {
				name = "FEATURE_" + "CIR"[set:set+1] + strconv.Itoa(bit)
			}
			names = append(names, name)
		}
	}
	return names
}
