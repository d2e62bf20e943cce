export default {
  serverExternalPackages: ["ccm-web"],
  // The packages are in the folder above.
  turbopack: { root: new URL("..", import.meta.url).pathname },
};
