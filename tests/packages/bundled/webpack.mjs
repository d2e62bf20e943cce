// Builds `main.ts`, whose types esbuild has removed, with webpack.

import webpack from "webpack";

const options = {
  mode: "production",
  context: import.meta.dirname,
  entry: "./main.js",
  output: { path: `${import.meta.dirname}/webpack`, publicPath: "/" },
  performance: false,
};
webpack(options, (error, stats) => {
  if (!error && !stats.hasErrors() && !stats.hasWarnings()) return;
  console.error(error ?? stats.toString());
  process.exitCode = 1;
});
