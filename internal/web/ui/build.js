// Bundles plot.js, with the packages that it imports, into the folder named.
import { build } from "esbuild";
import { readFileSync } from "node:fs";

// What is passed on carries its licence.
const notice = `/*! This holds uPlot:\n${readFileSync("node_modules/uplot/LICENSE", "utf8")}*/`;

await build({
  entryPoints: ["plot.js"],
  outdir: process.argv[2],
  bundle: true,
  minify: true,
  format: "iife",
  target: "es2020",
  banner: { js: notice, css: notice },
  logLevel: "warning",
});
